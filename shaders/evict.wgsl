// One step of a list of kept keys: scores grow by weights, the lowest is dropped, the new token is put in.
//
// Formula:   scores[j] += sum_g weight[h * group + g, j]; then, where no place is free, the place with the lowest score
//            (keys at the last `recent` positions after all others, the first of equal ones) is dropped, and the new
//            token takes the last place of the list, those behind the dropped one moved up (ascending), or its place.
// Grid:      one workgroup per (head; batch entry), heads fastest.
// Workgroup: 64 invocations, each with every 64th place.
// Memory:    a candidate per invocation.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const NONE: u32 = 0xffffffffu;

struct Params {
    workgroups: u32,
    heads: u32,
    group: u32,             // query heads of a head
    budget: u32,
    rounds: u32,            // budget / WORKGROUP, rounded up
    columns: u32,           // of weights
    by_position: u32,
    recent: u32,
    ascending: u32,
    index_at: u32, index_batch: u32, index_head: u32, index_place: u32,
    scores_at: u32, scores_batch: u32, scores_head: u32, scores_place: u32,
    weight_at: u32, weight_batch: u32, weight_head: u32, weight_column: u32,
    positions_at: u32, positions_batch: u32,
    indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
    new_scores_at: u32, new_scores_batch: u32, new_scores_head: u32, new_scores_place: u32,
    places_at: u32, places_batch: u32, places_head: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<Scalar>; // [batch, q_heads, budget or n]
@group(0) @binding(2) var<storage, read> positions: array<u32>; // [batch]
@group(0) @binding(3) var<storage, read_write> indices: array<u32>; // [batch, heads, budget]
@group(0) @binding(4) var<storage, read_write> new_scores: array<f32>; // [batch, heads, budget]
//@if !IN_PLACE
@group(0) @binding(5) var<storage, read> index: array<u32>; // [batch, heads, budget]
@group(0) @binding(6) var<storage, read> scores: array<f32>; // [batch, heads, budget]
//@endif
//@if PLACES
@group(0) @binding(7) var<storage, read_write> places: array<u32>; // [batch, heads]
//@endif

// Candidates compare by rank, score and place: 0 for a free place, 1 for a key, 2 for a recent one.
struct Candidate {
    rank: u32,
    score: u32,             // bits, in the order of the numbers
    place: u32,
}

var<workgroup> candidates: array<Candidate, WORKGROUP>;

fn lower(a: Candidate, b: Candidate) -> Candidate {
    let less = a.rank < b.rank || (a.rank == b.rank && (a.score < b.score || (a.score == b.score && a.place < b.place)));
    return Candidate(select(b.rank, a.rank, less), select(b.score, a.score, less), select(b.place, a.place, less));
}

// The bits of a number, so that they compare as it does; -0 equals 0.
fn ordered(number: f32) -> u32 {
    let bits = bitcast<u32>(number);
    let plain = select(bits, 0u, bits == 0x80000000u);
    return select(plain | 0x80000000u, ~plain, plain >= 0x80000000u);
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
//@if !IN_PLACE
    let index_at = params.index_at + batch * params.index_batch + head * params.index_head;
    let scores_at = params.scores_at + batch * params.scores_batch + head * params.scores_head;
//@endif
    let weight_at = params.weight_at + batch * params.weight_batch + head * params.group * params.weight_head;
    let indices_at = params.indices_at + batch * params.indices_batch + head * params.indices_head;
    let new_scores_at = params.new_scores_at + batch * params.new_scores_batch + head * params.new_scores_head;
    let position = positions[params.positions_at + batch * params.positions_batch];

    // The list with its new scores, where they are to be if nothing is dropped.
    var best = Candidate(NONE, NONE, NONE);
    for (var j = local; j < params.budget; j += WORKGROUP) {
//@if IN_PLACE
        let key = indices[indices_at + j * params.indices_place];
        var score = new_scores[new_scores_at + j * params.new_scores_place];
//@else
        let key = index[index_at + j * params.index_place];
        var score = scores[scores_at + j * params.scores_place];
//@endif
        let column = select(j, key, params.by_position != 0u);
        if (key != NONE && column < params.columns) {
            for (var g = 0u; g < params.group; g++) {
                score += f32(weight[weight_at + g * params.weight_head + column * params.weight_column]);
            }
        }
        indices[indices_at + j * params.indices_place] = key;
        new_scores[new_scores_at + j * params.new_scores_place] = score;
        let recent = key <= position && position - key < params.recent;
        let rank = select(1u + u32(recent), 0u, key == NONE);
        best = lower(best, Candidate(rank, select(ordered(score), 0u, key == NONE), j));
    }
    candidates[local] = best;
    storageBarrier();
    workgroupBarrier();
    best = candidates[0];
    for (var i = 1u; i < WORKGROUP; i++) {
        best = lower(best, candidates[i]);
    }
    let put = position != NONE;
    let shift = put && best.rank > 0u && params.ascending != 0u;

    // Those behind the dropped one move up, a workgroup's width at a time: what a round reads, only later ones write.
    for (var round = 0u; round < params.rounds; round++) {
        let j = round * WORKGROUP + local;
        let moves = shift && j >= best.place && j + 1u < params.budget;
        var key = 0u;
        var score = 0.0;
        if (moves) {
            key = indices[indices_at + (j + 1u) * params.indices_place];
            score = new_scores[new_scores_at + (j + 1u) * params.new_scores_place];
        }
        storageBarrier();
        if (moves) {
            indices[indices_at + j * params.indices_place] = key;
            new_scores[new_scores_at + j * params.new_scores_place] = score;
        }
        storageBarrier();
    }
    if (local == 0u) {
        let place = select(best.place, params.budget - 1u, shift);
        if (put) {
            indices[indices_at + place * params.indices_place] = position;
            new_scores[new_scores_at + place * params.new_scores_place] = 0.0;
        }
//@if PLACES
        places[params.places_at + batch * params.places_batch + head * params.places_head] = select(NONE, place, put);
//@endif
    }
}
