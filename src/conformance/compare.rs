//! Outputs against what a case expects.

use super::{
    case::{Case, Tolerance},
    problem::Problem,
};
use crate::{
    Op,
    ops::{Slot, dims},
    reference,
};

/// The worst error of the outputs (see [`reference::error`]), and what is wrong with them.
pub(super) fn outputs(
    case: &Case,
    problem: &Problem,
    outputs: &[(Slot, Vec<f32>)],
) -> (f64, Vec<String>) {
    let mut worst = 0.0f64;
    let mut complaints = Vec::new();
    for (name, decided) in &problem.decided {
        if case.tensor(name).map(|array| &array.values) != Some(decided) {
            complaints.push(format!("{name}: the definition gives another mask"));
        }
    }
    for (slot, name) in &problem.expected {
        let got = outputs.iter().find(|(other, _)| other == slot);
        let want = case.tensor(name);
        let (Some((_, got)), Some(want)) = (got, want) else {
            complaints.push(format!("{name}: there is nothing to compare"));
            continue;
        };
        let values = match want.reals() {
            Ok(values) => values,
            Err(message) => {
                complaints.push(format!("{name}: {message}"));
                continue;
            }
        };
        let reference: Vec<f64> = values.iter().map(|&x| x.into()).collect();
        worst = worst.max(reference::error(got, &reference));
        // An attention that sees no key gives zeros, and nothing near them.
        let complaint = off(got, values, case.tolerance).or_else(|| match &problem.op {
            Op::Attention(op) if *slot == Slot::O => not_zero(got, values, dims(&op.o)[3]),
            _ => None,
        });
        complaints.extend(complaint.map(|complaint| format!("{name}: {complaint}")));
    }
    (worst, complaints)
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
    fn empty_rows_are_exactly_zero() {
        let want = [0.0, 0.0, 1.0, 0.0];
        assert_eq!(not_zero(&[0.0, 0.0, 1.0, 1e-9], &want, 2), None);
        assert!(not_zero(&[0.0, 1e-9, 1.0, 0.0], &want, 2).is_some());
    }
}
