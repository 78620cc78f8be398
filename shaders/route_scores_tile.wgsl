// Scores for routing, tile schedule: for any GPU, no subgroups needed, any number of channels.
//
// Formula:   out[h, i, j] = sum over heads of factor relu(scale q_i . k_j), with RELU and WEIGHTS; BOUNDS:
//            sum_d max(q_d k_d, q_d k_min_d) in place of the product.
// Grid:      one workgroup per (batch, KV head, output head, 32 columns, 32 rows).
// Workgroup: 64 invocations as 8 x 8. Invocation (y, x) owns a 4 x 4 piece of the scores (rows 4y.., columns 4x..).
// Memory:    chunks of 32 channels of q and of k (and k_min), [channel, row or column]; padded by one element against
//            bank conflicts. 8.3 KiB, or 12.4 KiB.

//@import route_scores

const TILE: u32 = 32u;
const THREADS: u32 = 64u;
const LOADS: u32 = TILE * TILE / THREADS;
const PITCH: u32 = TILE + 1u;

var<workgroup> left: array<f32, TILE * PITCH>;
var<workgroup> right: array<f32, TILE * PITCH>;
//@if BOUNDS
var<workgroup> low: array<f32, TILE * PITCH>;
//@endif

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let share = share_of(number, TILE);
    let x = local % 8u;
    let y = local / 8u;
    let channel = local % TILE;
    let line = local / TILE;
    let last_row = params.rows - 1u;

    var total: array<vec4<f32>, 4>;
    for (var summed = 0u; summed < params.summed; summed++) {
        var score: array<vec4<f32>, 4>;
        let q_head = share.q + summed * params.q_head;
        for (var d0 = 0u; d0 < params.channels; d0 += TILE) {
            let d = d0 + channel;
            workgroupBarrier();
            for (var n = 0u; n < LOADS; n++) {
                let place = line + n * (THREADS / TILE);
                // Rows and columns past the last are read as the last, and not written.
                let row = min(share.first_row + place, last_row);
                let column = min(share.first_column + place, share.end_column - 1u);
                var q_value = 0.0;
                var k_value = 0.0;
//@if BOUNDS
                var low_value = 0.0;
//@endif
                if (d < params.channels) {
                    q_value = f32(q[q_head + row * params.q_row + d * params.q_channel]);
                    k_value = f32(k[share.k + column * params.k_row + d * params.k_channel]);
//@if BOUNDS
                    low_value = f32(k_min[share.low + column * params.low_row + d * params.low_channel]);
//@endif
                }
                left[channel * PITCH + place] = q_value;
                right[channel * PITCH + place] = k_value;
//@if BOUNDS
                low[channel * PITCH + place] = low_value;
//@endif
            }
            workgroupBarrier();
            // The channels of a chunk are summed first: fewer additions to a large number.
            var part: array<vec4<f32>, 4>;
            for (var n = 0u; n < min(TILE, params.channels - d0); n++) {
                let at = n * PITCH + x * 4u;
                let key = vec4<f32>(right[at], right[at + 1u], right[at + 2u], right[at + 3u]);
//@if BOUNDS
                let least = vec4<f32>(low[at], low[at + 1u], low[at + 2u], low[at + 3u]);
//@endif
                //@unroll
                for (var r = 0u; r < 4u; r++) {
                    let query = vec4<f32>(left[n * PITCH + y * 4u + r]);
//@if BOUNDS
                    part[r] += max(query * key, query * least);
//@else
                    part[r] = fma(query, key, part[r]);
//@endif
                }
            }
            //@unroll
            for (var r = 0u; r < 4u; r++) {
                score[r] += part[r];
            }
        }
        //@unroll
        for (var r = 0u; r < 4u; r++) {
            let row = min(share.first_row + y * 4u + r, last_row);
            total[r] += finished(score[r], factor_of(share, summed, row));
        }
    }
    let column = share.first_column + x * 4u;
    if (column < share.end_column) {
        //@unroll
        for (var r = 0u; r < 4u; r++) {
            let row = share.first_row + y * 4u + r;
            if (row <= last_row) {
                store(share, row, column, share.end_column - column, total[r], params.add > 0u);
            }
        }
    }
}
