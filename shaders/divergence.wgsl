// The Jensen-Shannon distance of two distributions, and whether it is below a threshold.
//
// Formula:   p = sample / sum, r = estimate / sum, m = (p + r) / 2;
//            distance = sqrt(sum p ln(p / m) / 2 + sum r ln(r / m) / 2).
//            With d = |p - r| / (p + r), an element adds m f(d) / 2, f(d) = (1 + d) ln(1 + d) + (1 - d) ln(1 - d): none
//            of these is negative, so that nothing cancels.
// Grid:      one workgroup per (head; batch entry), heads fastest.
// Workgroup: 64 invocations, each with every 64th element.
// Memory:    two sums per invocation.

//@import grid

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    workgroups: u32,
    heads: u32,
    length: u32,
    threshold: f32,
    sample_at: u32, sample_batch: u32, sample_head: u32, sample_place: u32,
    estimate_at: u32, estimate_batch: u32, estimate_head: u32, estimate_place: u32,
    chosen_at: u32, chosen_batch: u32, chosen_head: u32,
    distance_at: u32, distance_batch: u32, distance_head: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sample: array<f32>; // [batch, heads, length]
@group(0) @binding(2) var<storage, read> estimate: array<f32>; // [batch, heads, length]
@group(0) @binding(3) var<storage, read_write> chosen: array<u32>; // [batch, heads]
//@if DISTANCE
@group(0) @binding(4) var<storage, read_write> distance: array<f32>; // [batch, heads]
//@endif

const LARGEST: f32 = 0.8325546; // sqrt(ln 2)
// Sums that can be divided by.
const LEAST: f32 = 1e-36;
const MOST: f32 = 3e38;

var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

// Sums over the workgroup, in the order of the invocations.
fn sum_of(own: vec2<f32>, local: u32) -> vec2<f32> {
    workgroupBarrier();
    sums[local] = own;
    workgroupBarrier();
    var result = vec2<f32>(0.0);
    for (var i = 0u; i < WORKGROUP; i++) {
        result += sums[i];
    }
    return result;
}

fn apart(d: f32) -> f32 {
    let square = d * d;
    // Terms of the series, where the logarithms cancel.
    let near = square * (1.0 + square * (1.0 / 6.0 + square * (1.0 / 15.0 + square * (1.0 / 28.0))));
    let left = max(1.0 - d, 1e-30);
    let far = (1.0 + d) * log(1.0 + d) + left * log(left);
    return select(far, near, d < 0.25);
}

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
    let batch = number / params.heads;
    let head = number % params.heads;
    let sample_at = params.sample_at + batch * params.sample_batch + head * params.sample_head;
    let estimate_at = params.estimate_at + batch * params.estimate_batch + head * params.estimate_head;
    var own = vec2<f32>(0.0);
    for (var i = local; i < params.length; i += WORKGROUP) {
        own += max(
            vec2<f32>(sample[sample_at + i * params.sample_place], estimate[estimate_at + i * params.estimate_place]),
            vec2<f32>(0.0),
        );
    }
    let totals = sum_of(own, local);
    let there = min(totals.x, totals.y) > LEAST && max(totals.x, totals.y) < MOST;
    let scale = select(vec2<f32>(0.0), vec2<f32>(1.0) / totals, vec2<bool>(there));
    var divergence = 0.0;
    for (var i = local; i < params.length; i += WORKGROUP) {
        let both = scale * max(
            vec2<f32>(sample[sample_at + i * params.sample_place], estimate[estimate_at + i * params.estimate_place]),
            vec2<f32>(0.0),
        );
        let sum = both.x + both.y;
        if (sum > 0.0) {
            divergence += 0.25 * sum * apart(min(abs(both.x - both.y) / sum, 1.0));
        }
    }
    let all = sum_of(vec2<f32>(divergence, 0.0), local).x;
    if (local == 0u) {
        let result = select(LARGEST, min(sqrt(all), LARGEST), there);
        chosen[params.chosen_at + batch * params.chosen_batch + head * params.chosen_head] =
            u32(result < params.threshold);
//@if DISTANCE
        distance[params.distance_at + batch * params.distance_batch + head * params.distance_head] = result;
//@endif
    }
}
