"""Latent video: Brownian motion against fractional noise on moving digits, with spreads over seeds."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.check import Figure, Section, at_least, main, reported

__all__ = ["SLOW"]


def moving_digits(smoke: bool) -> Iterator[Figure]:
    """Bound and PSNR of both noises, same networks and budget, beside guesses without a model."""
    from examples import latent_video

    if smoke:
        found = latent_video.main(
            Path("out/latent_video_smoke"), 20, 2, train_videos=32, test_videos=4, batch=8
        )
    else:
        found = latent_video.main()
    yield reported("bound before training [nat a video]", found["bound_before"])
    for name in ("mean_frame_reconstruction", "mean_frame_prediction", "last_frame_prediction"):
        yield reported(f"{name.replace('_', ' ')} [dB]", found[name])
    for noise in ("brownian", "fractional"):
        for name, unit in (("bound", " [nat a video]"), ("prediction", " [dB]"), ("hurst", "")):
            spread = f"sd over seeds {found[f'{noise}_{name}_sd']:.3g}"
            yield reported(f"{noise}: {name}{unit}", found[f"{noise}_{name}"], spread)
        # A model that follows the digits shows more than the mean frame does.
        yield at_least(
            f"{noise}: reconstruction [dB]",
            found[f"{noise}_reconstruction"],
            found["mean_frame_reconstruction"],
            f"sd over seeds {found[f'{noise}_reconstruction_sd']:.3g}",
        )


SLOW: list[Section] = [moving_digits]

if __name__ == "__main__":
    raise SystemExit(main("latent_video", SLOW))
