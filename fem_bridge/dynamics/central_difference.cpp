// Central difference on linear triangles, for blocks of samples that advance side by side in vector lanes.
//
// Arrays of a block are row-major (degree of freedom or cell, lane). Every lane performs the same operations in the
// same order whatever the number of lanes (compiled without contraction into fused multiply-adds), so a sample has
// the same bits in any batch and on any number of threads.

#include <cstdint>

namespace {

// The W numbers of a row; plain arithmetic on them compiles to the vectors of the machine.
template <typename T, int W>
struct Row {
    typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T>
struct Row<T, 1> {
    typedef T type;
};

struct Plan {
    int64_t num_dofs, num_cells;
    int64_t width;        // samples, filled up to whole blocks
    int64_t first, last;  // steps taken by this call
    int64_t every;        // steps per frame
    int64_t num_loaded, num_driven, num_observed;
    int64_t pulse_steps;  // steps with a load, from step 0 on
    const int32_t *nodes, *loaded, *driven, *observed;
};

template <typename T>
struct Arrays {
    const T *gradients;       // (C, 5): gradients of shape functions 1 and 2, area
    const T *elasticity;      // (3): axial, lateral, shear
    const T *modulus;         // (C) if shared, else (blocks, C, W)
    const T *step_over_mass;  // (D), 0 where the motion is prescribed
    const T *spatial;         // (loaded, width)
    const T *amplitude;       // (steps, width)
    const T *motion;          // (steps + 1, driven, width)
    T *u, *v, *f;             // (blocks, D, W): displacement, velocity half a step before, zeros
    T *frames;                // (frames, observed, width)
    T step;
    bool shared;
};

// f += K u. Gradients sum to zero over the nodes: work with differences of displacements to node 0.
template <typename T, int W>
void add_internal_force(const Plan &plan, const Arrays<T> &arrays, const T *modulus, const T *displacement, T *force) {
    typedef typename Row<T, W>::type V;
    const V *u = reinterpret_cast<const V *>(displacement), *moduli = reinterpret_cast<const V *>(modulus);
    V *f = reinterpret_cast<V *>(force);
    const T axial = arrays.elasticity[0], lateral = arrays.elasticity[1], shear = arrays.elasticity[2];
    for (int64_t c = 0; c < plan.num_cells; ++c) {
        const int32_t *node = plan.nodes + 3 * c;
        const int64_t a = 2 * int64_t(node[0]), b = 2 * int64_t(node[1]), d = 2 * int64_t(node[2]);
        const T *g = arrays.gradients + 5 * c;
        const T x1 = g[0], y1 = g[1], x2 = g[2], y2 = g[3];
        const V px = u[b] - u[a], py = u[b + 1] - u[a + 1], qx = u[d] - u[a], qy = u[d + 1] - u[a + 1];
        const V exx = x1 * px + x2 * qx, eyy = y1 * py + y2 * qy;
        const V exy = (y1 * px + y2 * qx) + (x1 * py + x2 * qy);
        const V scale = arrays.shared ? V() + g[4] * modulus[c] : g[4] * moduli[c];
        const V sxx = scale * (axial * exx + lateral * eyy), syy = scale * (lateral * exx + axial * eyy);
        const V sxy = scale * (shear * exy);
        const V f1x = x1 * sxx + y1 * sxy, f1y = y1 * syy + x1 * sxy;
        const V f2x = x2 * sxx + y2 * sxy, f2y = y2 * syy + x2 * sxy;
        f[a] -= f1x + f2x;
        f[a + 1] -= f1y + f2y;
        f[b] += f1x;
        f[b + 1] += f1y;
        f[d] += f2x;
        f[d + 1] += f2y;
    }
}

template <typename T, int W>
void advance_block(const Plan &plan, const Arrays<T> &arrays, int64_t block) {
    typedef typename Row<T, W>::type V;
    const int64_t column = block * W, state = block * plan.num_dofs * W;
    V *u = reinterpret_cast<V *>(arrays.u + state), *v = reinterpret_cast<V *>(arrays.v + state);
    V *f = reinterpret_cast<V *>(arrays.f + state);
    const T *modulus = arrays.shared ? arrays.modulus : arrays.modulus + block * plan.num_cells * W;
    const auto row = [&](const T *table, int64_t r) {
        return reinterpret_cast<const V *>(table + r * plan.width + column);
    };
    for (int64_t k = plan.first; k < plan.last; ++k) {
        if (k < plan.pulse_steps)
            for (int64_t r = 0; r < plan.num_loaded; ++r)
                f[plan.loaded[r]] = -(*row(arrays.spatial, r) * *row(arrays.amplitude, k));
        add_internal_force<T, W>(plan, arrays, modulus, arrays.u + state, arrays.f + state);
        const T part = k == 0 ? T(0.5) : T(1);  // the first velocity is that of half a step
        for (int64_t i = 0; i < plan.num_dofs; ++i) {
            v[i] -= (part * arrays.step_over_mass[i]) * f[i];
            u[i] += arrays.step * v[i];
            f[i] = V();
        }
        for (int64_t r = 0; r < plan.num_driven; ++r)
            u[plan.driven[r]] = *row(arrays.motion, (k + 1) * plan.num_driven + r);
        if ((k + 1) % plan.every == 0) {
            T *frame = arrays.frames + (k + 1) / plan.every * plan.num_observed * plan.width + column;
            for (int64_t r = 0; r < plan.num_observed; ++r)
                *reinterpret_cast<V *>(frame + r * plan.width) = u[plan.observed[r]];
        }
    }
}

template <typename T, int W>
int advance(const Plan &plan, const Arrays<T> &arrays, int threads) {
    const int64_t blocks = plan.width / W;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
#endif
    for (int64_t block = 0; block < blocks; ++block)
        advance_block<T, W>(plan, arrays, block);
    return 0;
}

template <typename T>
int dispatch(int64_t lanes, const Plan &plan, void *const *p, double step, bool shared, int threads) {
    const auto at = [&](int k) { return static_cast<T *>(p[k]); };
    const Arrays<T> arrays{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), T(step), shared};
    constexpr int full = 32 / int(sizeof(T));
    if (lanes == full)
        return advance<T, full>(plan, arrays, threads);
    return lanes == 1 ? advance<T, 1>(plan, arrays, threads) : 1;
}

}  // namespace

// sizes, tables and arrays in the order of Plan and Arrays; lanes is 1, 4 (double) or 8 (single).
extern "C" int sdeuq_central_difference(const int64_t *sizes, const int32_t *const *tables, void *const *arrays,
                                        int64_t lanes, double step, int shared, int single, int threads) {
    const Plan plan{sizes[0], sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5],  sizes[6],
                    sizes[7], sizes[8], sizes[9], tables[0], tables[1], tables[2], tables[3]};
    return single ? dispatch<float>(lanes, plan, arrays, step, shared != 0, threads)
                  : dispatch<double>(lanes, plan, arrays, step, shared != 0, threads);
}
