"""Every figure that the main job and its foundation must show, in one run.

The sections stand in modules of their own; each of those can be run alone. On two cores the whole takes
about half an hour.
"""

from benchmarks import dynamics, engine, generators, linear_trace, noise, random_fields, submodel, training
from benchmarks.check import Section, main

__all__ = ["SECTIONS"]

SECTIONS: list[Section] = [
    section
    for module in (noise, engine, random_fields, dynamics, submodel, linear_trace, generators, training)
    for section in module.SECTIONS
]

if __name__ == "__main__":
    raise SystemExit(main("main_job", SECTIONS))
