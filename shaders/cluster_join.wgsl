// Centroids moved towards the direction of their tokens' sum.
//
// Formula:   new_means[h, c] = decay means[h, c] + (1 - decay) s / max(|s|, 1e-12), s the sum of the parts; means[h, c]
//            where the cluster has no token.
// Grid:      one workgroup per (cluster; head), clusters fastest.
// Workgroup: 64 invocations, each with every 64th channel.
// Memory:    a sum of squares per invocation.

//@import grid

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    workgroups: u32,
    clusters: u32,
    dim: u32,
    parts: u32,
    decay: f32,
    starts_at: u32,
    parts_at: u32,
    means_at: u32, means_head: u32, means_cluster: u32, means_dim: u32,
    new_means_at: u32, new_means_head: u32, new_means_cluster: u32, new_means_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> means: array<f32>; // [heads, clusters, dim]
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>; // [heads, clusters, parts, dim], [heads, clusters + 1]
@group(0) @binding(3) var<storage, read_write> new_means: array<f32>; // [heads, clusters, dim]

var<workgroup> squares: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.workgroups) {
        return;
    }
    let cluster = number % params.clusters;
    let head = number / params.clusters;
    let starts_at = params.starts_at + head * (params.clusters + 1u) + cluster;
    let empty = scratch[starts_at] == scratch[starts_at + 1u];
    let parts_at = params.parts_at + number * params.parts * params.dim;
    let means_at = params.means_at + head * params.means_head + cluster * params.means_cluster;
    let to = params.new_means_at + head * params.new_means_head + cluster * params.new_means_cluster;

    // The sum of a channel takes the place of its first part.
    var own = 0.0;
    for (var d = local; d < params.dim; d += WORKGROUP) {
        var sum = 0.0;
        for (var p = 0u; p < params.parts; p++) {
            sum += bitcast<f32>(scratch[parts_at + p * params.dim + d]);
        }
        scratch[parts_at + d] = bitcast<u32>(sum);
        own = fma(sum, sum, own);
    }
    squares[local] = own;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < WORKGROUP; i++) {
        total += squares[i];
    }
    let factor = 1.0 / max(sqrt(total), 1e-12);
    for (var d = local; d < params.dim; d += WORKGROUP) {
        let old = means[means_at + d * params.means_dim];
        let moved = bitcast<f32>(scratch[parts_at + d]) * factor;
        new_means[to + d * params.new_means_dim] = fma(params.decay, old, (1.0 - params.decay) * select(moved, old, empty));
    }
}
