//! Outputs against what a case expects.

use std::borrow::Cow;

use safetensors::Dtype;

use super::{
    Computed, Seen,
    case::{Array, Case, Tolerance, Values},
    outputs::Outputs,
    problem::{Problem, Sets, Source},
};
use crate::{
    Op,
    ops::{Slot, dims},
    reference,
};

/// The worst error of the outputs (see [`reference::error`]), and what is wrong with them.
pub(super) fn outputs(case: &Case, problem: &Problem, computed: &Computed) -> (f64, Vec<String>) {
    let mut worst = 0.0f64;
    let mut complaints = Vec::new();
    for (name, decided) in &problem.decided {
        if case.tensor(name).map(|array| &array.values) != Some(decided) {
            complaints.push(format!("{name}: the definition gives another one"));
        }
    }
    for (name, source) in &problem.expected {
        let Some(want) = case.tensor(name) else {
            complaints.push(format!("{name}: there is nothing to compare"));
            continue;
        };
        let complaint = match source {
            Source::Visible(call) => match computed.visible.get(call) {
                Some(seen) => mask(seen, want),
                None => Some("no attention was probed".to_owned()),
            },
            Source::Call(call, slot) => {
                let got = computed.outputs.of(*call, *slot).map(Cow::Borrowed);
                let op = problem.calls.get(*call).map(|call| &call.op);
                let complaint = numbers(got, want, case.tolerance, &mut worst);
                complaint.or_else(|| match (op, slot, computed.outputs.of(*call, *slot)) {
                    // An attention that sees no key gives zeros, and nothing near them.
                    (Some(Op::Attention(op)), Slot::O, Ok(got)) => {
                        let want = want.reals().unwrap_or_default();
                        not_zero(got, want, dims(&op.o)[3])
                    }
                    _ => None,
                })
            }
            Source::Shared(number) => {
                let got = computed.outputs.shared(*number).map(Cow::Borrowed);
                numbers(got, want, case.tolerance, &mut worst)
            }
            Source::Sets(sets) => selection(sets, &computed.outputs, want),
            Source::Integers(make) => match (make(&computed.outputs), want.integers()) {
                (Ok(got), Ok(want)) => got
                    .iter()
                    .zip(want)
                    .position(|(got, want)| got != want)
                    .or((got.len() != want.len()).then_some(got.len().min(want.len())))
                    .map(|at| format!("another whole number at {at}")),
                (Err(message), _) | (_, Err(message)) => Some(message),
            },
            Source::Host(make) => {
                let got = make(&computed.outputs).map(Cow::Owned);
                numbers(got, want, case.tolerance, &mut worst)
            }
        };
        complaints.extend(complaint.map(|complaint| format!("{name}: {complaint}")));
    }
    (worst, complaints)
}

/// What is wrong with numbers; `worst` keeps the worst error.
fn numbers(
    got: Result<Cow<'_, [f32]>, String>,
    want: &Array,
    tolerance: Tolerance,
    worst: &mut f64,
) -> Option<String> {
    let (got, values) = match (got, want.reals()) {
        (Ok(got), Ok(values)) => (got, values),
        (Err(message), _) | (_, Err(message)) => return Some(message),
    };
    let reference: Vec<f64> = values.iter().map(|&x| x.into()).collect();
    *worst = worst.max(reference::error(&got, &reference));
    off(&got, values, tolerance.of(want.dtype))
}

impl Tolerance {
    /// The tolerance for numbers that were computed in this type: bf16 has 8 bits, and what a reference
    /// computes in it is off by roundings of its own (four halves of the last bit allow for those of the
    /// scaled inputs, the scores, the weights and the sum).
    fn of(self, dtype: Dtype) -> Self {
        let roundings = match dtype {
            Dtype::BF16 => 4.0 / 512.0,
            _ => 0.0,
        };
        Self {
            atol_of_max: self.atol_of_max.max(roundings),
            ..self
        }
    }
}

/// Where a stored mask, broadcast to all pairs, is not what was seen.
fn mask(seen: &Seen, want: &Array) -> Option<String> {
    let Values::Boolean(allowed) = &want.values else {
        return Some(format!("{} where booleans are expected", want.dtype));
    };
    let missing = 4usize.saturating_sub(want.shape.len());
    let mut shape = vec![1; missing];
    shape.extend(&want.shape);
    let fits = |(&len, all): (&u64, u64)| len == 1 || len == all;
    if shape.len() != 4 || !shape.iter().zip(seen.shape).all(fits) {
        return Some(format!(
            "shape {:?} for pairs of {:?}",
            want.shape, seen.shape
        ));
    }
    let [_, heads, queries, keys] = seen.shape;
    let wrong = seen.pairs.iter().zip(0u64..).filter(|&(&pair, number)| {
        let place = [
            number / (heads * queries * keys),
            number / (queries * keys) % heads,
            number / keys % queries,
            number % keys,
        ];
        let axes = place.iter().zip(&shape);
        let at = axes.fold(0, |at, (place, len)| {
            at * len + if *len == 1 { 0 } else { *place }
        });
        allowed.get(at as usize) != Some(&pair)
    });
    let wrong: Vec<u64> = wrong.map(|(_, number)| number).collect();
    let first = wrong.first()?;
    Some(format!(
        "{} of {} pairs are seen and should not be, or the other way round; the first is query {}, key {}",
        wrong.len(),
        seen.pairs.len(),
        first / keys % queries,
        first % keys
    ))
}

/// Rows in which a selection took other numbers than the stored ones.
fn selection(sets: &Sets, outputs: &Outputs, want: &Array) -> Option<String> {
    let taken = match (sets.taken)(outputs) {
        Ok(taken) => taken,
        Err(message) => return Some(message),
    };
    let width = want.shape.last().map_or(1, |&len| len.max(1) as usize);
    let stored: Vec<Vec<i64>> = match &want.values {
        Values::Integer(values) => values
            .chunks(width)
            .map(|row| row.iter().copied().filter(|&number| number >= 0).collect())
            .collect(),
        Values::Boolean(values) => values
            .chunks(width)
            .map(|row| {
                let all = row.iter().zip(0..);
                all.filter_map(|(&taken, number)| taken.then_some(number))
                    .collect()
            })
            .collect(),
        Values::Real(_) => return Some(format!("{} where a selection is expected", want.dtype)),
    };
    if taken.len() != stored.len() {
        return Some(format!("{} rows where {} are", taken.len(), stored.len()));
    }
    let rows = taken.into_iter().zip(stored).enumerate();
    let mut wrong = rows.filter_map(|(row, (mut got, mut want))| {
        want.retain(|&number| (sets.counts)(row, number));
        got.sort_unstable();
        want.sort_unstable();
        (got != want).then(|| format!("row {row} has {got:?} where {want:?} is expected"))
    });
    let first = wrong.next()?;
    Some(format!("{} rows are wrong: {first}", 1 + wrong.count()))
}

/// What is off by more than the tolerance. Numbers that are not finite must be met exactly.
fn off(got: &[f32], want: &[f32], tolerance: Tolerance) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} numbers where {} are", got.len(), want.len()));
    }
    let largest = want.iter().filter(|x| x.is_finite());
    let largest = largest.fold(0.0f64, |max, &x| max.max(f64::from(x).abs()));
    let atol = tolerance.atol + tolerance.atol_of_max * largest;
    // How far past its own bound a number is; not finite: all the way.
    let excess = |got: f32, want: f32| {
        if got == want || got.is_nan() && want.is_nan() {
            return f64::NEG_INFINITY;
        }
        let (got, want) = (f64::from(got), f64::from(want));
        let excess = (got - want).abs() - (atol + tolerance.rtol * want.abs());
        if want.is_finite() && got.is_finite() {
            excess
        } else {
            f64::INFINITY
        }
    };
    let bad = got
        .iter()
        .zip(want)
        .enumerate()
        .map(|(at, (&got, &want))| (excess(got, want), at))
        .filter(|(excess, _)| *excess > 0.0);
    let (count, worst) = bad.fold((0, (0.0, 0)), |(count, worst), one| {
        (count + 1, if one.0 > worst.0 { one } else { worst })
    });
    let at = worst.1;
    (count > 0).then(|| {
        format!(
            "{count} of {} numbers off, the worst at {at}: {} where {} is expected, by more than \
             {} of it + {atol:.1e}",
            got.len(),
            got[at],
            want[at],
            tolerance.rtol
        )
    })
}

/// Rows that ought to be all zero, and are not.
fn not_zero(got: &[f32], want: &[f32], width: u64) -> Option<String> {
    let width = width.max(1) as usize;
    let zero = |row: &[f32]| row.iter().all(|&x| x == 0.0);
    let rows = got.chunks(width).zip(want.chunks(width));
    let bad = rows.filter(|(got, want)| zero(want) && !zero(got)).count();
    (bad > 0).then(|| format!("{bad} rows are not exactly 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance {
        rtol: 1e-3,
        atol: 0.0,
        atol_of_max: 1e-3,
    };

    #[test]
    fn numbers_within_the_tolerance_pass() {
        assert_eq!(off(&[10.0, 0.009], &[10.0, 0.0], TOLERANCE), None);
        assert!(off(&[10.0, 0.011], &[10.0, 0.0], TOLERANCE).is_some());
        assert!(off(&[10.021], &[10.0], TOLERANCE).is_some());
        assert!(off(&[10.0], &[10.0, 0.0], TOLERANCE).is_some());
    }

    #[test]
    fn numbers_that_are_not_finite_are_met_exactly() {
        let low = f32::NEG_INFINITY;
        assert_eq!(off(&[low], &[low], TOLERANCE), None);
        for (got, want) in [
            (-3e38, low),
            (low, 1.0),
            (f32::NAN, 1.0),
            (f32::NAN, low),
            (f32::INFINITY, low),
        ] {
            assert!(off(&[got], &[want], TOLERANCE).is_some(), "{got} {want}");
        }
    }

    #[test]
    fn selections_are_compared_as_sets() {
        let stored = |shape: [u64; 2], values| Array {
            dtype: Dtype::I32,
            shape: shape.to_vec(),
            values,
        };
        let numbers = stored([2, 3], Values::Integer(vec![4, 0, -1, 7, 2, 1]));
        let flags = vec![true, false, true, false, false, false];
        let flags = stored([2, 3], Values::Boolean(flags));
        let complaint = |taken: [&[i64]; 2], want: &Array| {
            let taken = taken.map(<[i64]>::to_vec).to_vec();
            let sets = Sets {
                taken: Box::new(move |_| Ok(taken.clone())),
                // 7 is a pick that nothing sees.
                counts: Box::new(|row, number| row != 1 || number < 7),
            };
            selection(&sets, &Outputs::default(), want)
        };
        assert_eq!(complaint([&[0, 4], &[1, 2]], &numbers), None);
        assert_eq!(complaint([&[2, 0], &[]], &flags), None);
        for wrong in [
            complaint([&[0], &[1, 2]], &numbers),
            complaint([&[0, 4, 4], &[1, 2]], &numbers),
            complaint([&[0, 4], &[1, 2, 7]], &numbers),
            complaint([&[0, 1], &[]], &flags),
        ] {
            assert!(wrong.is_some_and(|said| said.starts_with("1 rows are wrong: row")));
        }
        let real = stored([2, 1], Values::Real(vec![0.0; 2]));
        assert!(complaint([&[], &[]], &real).is_some());
        assert!(complaint([&[], &[]], &stored([1, 1], Values::Integer(vec![0]))).is_some());
    }

    #[test]
    fn empty_rows_are_exactly_zero() {
        let want = [0.0, 0.0, 1.0, 0.0];
        assert_eq!(not_zero(&[0.0, 0.0, 1.0, 1e-9], &want, 2), None);
        assert!(not_zero(&[0.0, 1e-9, 1.0, 0.0], &want, 2).is_some());
    }
}
