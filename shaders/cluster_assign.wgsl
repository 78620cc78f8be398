// The centroid with the largest product of each token.
//
// Formula:   assigned[h, b * n + i] = argmax_c x[b, h, i] . means[h, c], the lowest c of equal ones.
// Grid:      one invocation per (four tokens; batch entry; head), tokens fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Where one dispatch may not walk along all centroids, they follow one another, and hand the largest product on.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias Mean = vec4<f32>;
//@else
alias Stored = Scalar;
alias Mean = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const LEAST_BITS: u32 = 0xff7fffffu; // the lowest finite number

struct Params {
    invocations: u32,
    quads: u32,             // n / 4, rounded up
    n: u32,
    batch: u32,
    dim: u32,
    clusters: u32,
    first: u32,             // the first centroid of this dispatch
    count: u32,             // how many it takes
    last: u32,              // whether it is the last dispatch
    assigned_place: u32,    // in scratch: [heads, batch * n]
    best_place: u32,        // largest products so far, of the same shape
    x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_dim: u32,
    means_at: u32, means_head: u32, means_cluster: u32, means_dim: u32,
    assigned_at: u32, assigned_batch: u32, assigned_head: u32, assigned_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [batch, heads, n, dim]
@group(0) @binding(2) var<storage, read> means: array<Mean>; // [heads, clusters, dim]
@group(0) @binding(3) var<storage, read_write> scratch: array<u32>; // [heads, batch * n] twice, and more
//@if OUTPUT
@group(0) @binding(4) var<storage, read_write> assigned: array<u32>; // [batch, heads, n]
//@endif

// Four channels from d on; those past the last are 0 in a token.
fn token(at: u32, d: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(x[(at + d) / 4u]);
//@else
    let c = min(vec4<u32>(d, d + 1u, d + 2u, d + 3u), vec4<u32>(params.dim - 1u)) * params.x_dim + at;
    let value = vec4<f32>(f32(x[c.x]), f32(x[c.y]), f32(x[c.z]), f32(x[c.w]));
    return select(vec4<f32>(), value, vec4<u32>(d, d + 1u, d + 2u, d + 3u) < vec4<u32>(params.dim));
//@endif
}

fn mean(at: u32, d: u32) -> vec4<f32> {
//@if VEC4
    return means[(at + d) / 4u];
//@else
    let c = min(vec4<u32>(d, d + 1u, d + 2u, d + 3u), vec4<u32>(params.dim - 1u)) * params.means_dim + at;
    return vec4<f32>(means[c.x], means[c.y], means[c.z], means[c.w]);
//@endif
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.invocations) {
        return;
    }
    let i = number % params.quads * 4u;
    let batch = number / params.quads % params.batch;
    let head = number / params.quads / params.batch;
    // Tokens and centroids past the last are read as the last; the former are not written, the latter never larger.
    let tokens = min(vec4<u32>(i, i + 1u, i + 2u, i + 3u), vec4<u32>(params.n - 1u));
    let x_at = tokens * params.x_token + params.x_at + batch * params.x_batch + head * params.x_head;
    let means_at = params.means_at + head * params.means_head;
    let own = tokens + (head * params.batch + batch) * params.n;

    var best = vec4<f32>(bitcast<f32>(LEAST_BITS));
    var chosen = vec4<u32>();
    if (params.first > 0u) {
        for (var t = 0u; t < 4u; t++) {
            best[t] = bitcast<f32>(scratch[params.best_place + own[t]]);
            chosen[t] = scratch[params.assigned_place + own[t]];
        }
    }
    let end = params.first + params.count;
    for (var c = params.first; c < end; c += 4u) {
        let centroids = min(vec4<u32>(c, c + 1u, c + 2u, c + 3u), vec4<u32>(params.clusters - 1u));
        let m_at = centroids * params.means_cluster + means_at;
        // A vector of four tokens' products for each centroid.
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        for (var d = 0u; d < params.dim; d += 4u) {
            let x0 = token(x_at.x, d);
            let x1 = token(x_at.y, d);
            let x2 = token(x_at.z, d);
            let x3 = token(x_at.w, d);
            let m0 = mean(m_at.x, d);
            let m1 = mean(m_at.y, d);
            let m2 = mean(m_at.z, d);
            let m3 = mean(m_at.w, d);
            s0 += vec4<f32>(dot(x0, m0), dot(x1, m0), dot(x2, m0), dot(x3, m0));
            s1 += vec4<f32>(dot(x0, m1), dot(x1, m1), dot(x2, m1), dot(x3, m1));
            s2 += vec4<f32>(dot(x0, m2), dot(x1, m2), dot(x2, m2), dot(x3, m2));
            s3 += vec4<f32>(dot(x0, m3), dot(x1, m3), dot(x2, m3), dot(x3, m3));
        }
        chosen = select(chosen, vec4<u32>(centroids.x), s0 > best);
        best = max(best, s0);
        chosen = select(chosen, vec4<u32>(centroids.y), s1 > best);
        best = max(best, s1);
        chosen = select(chosen, vec4<u32>(centroids.z), s2 > best);
        best = max(best, s2);
        chosen = select(chosen, vec4<u32>(centroids.w), s3 > best);
        best = max(best, s3);
    }
    for (var t = 0u; t < min(4u, params.n - i); t++) {
        scratch[params.assigned_place + own[t]] = chosen[t];
        scratch[params.best_place + own[t]] = bitcast<u32>(best[t]);
//@if OUTPUT
        if (params.last != 0u) {
            assigned[params.assigned_at + batch * params.assigned_batch + head * params.assigned_head + (i + t) * params.assigned_token] = chosen[t];
        }
//@endif
    }
}
