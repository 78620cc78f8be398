//! What came of each case, and of all.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::case::Case;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every output is within the case's tolerance.
    Passed,
    /// An output is not, or the device reported an error.
    Failed,
    /// No op computes it, or the adapter cannot.
    Unsupported,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The case's name.
    pub case: String,
    /// Its family.
    pub family: String,
    /// How it ended.
    pub status: Status,
    /// The worst error of its outputs, by [`crate::reference::error`].
    pub error: Option<f64>,
    /// Why it failed or is unsupported, or a remark.
    pub reason: Option<String>,
    /// Whether the list of unsupported cases has it.
    #[serde(skip)]
    pub listed: bool,
}

impl Verdict {
    pub(super) fn new(case: &Case, status: Status, error: Option<f64>, reason: String) -> Self {
        Self {
            case: case.name.clone(),
            family: case.family.clone(),
            status,
            error,
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            listed: false,
        }
    }

    /// Whether a run that holds this cannot be called good: it failed, or is unsupported without
    /// being listed.
    pub fn is_bad(&self) -> bool {
        match self.status {
            Status::Passed => false,
            Status::Failed => true,
            Status::Unsupported => !self.listed,
        }
    }
}

/// The cases known to be unsupported, as `family/case`.
#[derive(Debug, Clone, Default)]
pub struct Listed(BTreeSet<String>);

impl Listed {
    /// The list that the library carries: `tests/fixtures/unsupported.txt`.
    pub fn carried() -> Self {
        Self::parse(include_str!("../../tests/fixtures/unsupported.txt"))
    }

    /// A list of one name per line; `#` begins a comment.
    pub fn parse(text: &str) -> Self {
        let names = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|name| !name.is_empty());
        Self(names.map(str::to_owned).collect())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Holds a result against the list: only what is listed may be unsupported. A listed case that
    /// passes has to be taken off the list, so it counts as failed; so does one that runs and is
    /// wrong.
    pub fn judge(&self, mut verdict: Verdict) -> Verdict {
        verdict.listed = self
            .0
            .contains(&format!("{}/{}", verdict.family, verdict.case));
        match (verdict.listed, verdict.status) {
            (true, Status::Passed) => {
                verdict.status = Status::Failed;
                verdict.reason = Some(
                    "passes, but is listed as unsupported: take it off \
                     tests/fixtures/unsupported.txt"
                        .into(),
                );
            }
            (false, Status::Unsupported) => {
                let reason = verdict.reason.unwrap_or_default();
                verdict.reason = Some(format!("not listed: {reason}"));
            }
            _ => {}
        }
        verdict
    }
}

/// The counts of a family.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FamilyRow {
    /// Cases passed.
    pub passed: usize,
    /// Cases failed.
    pub failed: usize,
    /// Cases unsupported, listed or not.
    pub unsupported: usize,
    /// The worst error of those that ran.
    pub worst: Option<f64>,
}

/// What came of all cases.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    verdicts: Vec<Verdict>,
}

impl Summary {
    /// Adds a result.
    pub fn add(&mut self, verdict: Verdict) {
        self.verdicts.push(verdict);
    }

    /// The results, in the order in which they ran.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// The counts by family.
    pub fn families(&self) -> BTreeMap<&str, FamilyRow> {
        let mut rows: BTreeMap<&str, FamilyRow> = BTreeMap::new();
        for verdict in &self.verdicts {
            let row = rows.entry(&verdict.family).or_default();
            match verdict.status {
                Status::Passed => row.passed += 1,
                Status::Failed => row.failed += 1,
                Status::Unsupported => row.unsupported += 1,
            }
            if let Some(error) = verdict.error {
                row.worst = Some(row.worst.map_or(error, |worst| worst.max(error)));
            }
        }
        rows
    }

    /// Cases that ended this way.
    pub fn count(&self, status: Status) -> usize {
        let ended = |verdict: &&Verdict| verdict.status == status;
        self.verdicts.iter().filter(ended).count()
    }

    /// How many cases passed with each remark.
    pub fn remarks(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        let passed = self.verdicts.iter().filter(|v| v.status == Status::Passed);
        for remark in passed.filter_map(|verdict| verdict.reason.as_deref()) {
            *counts.entry(remark).or_default() += 1;
        }
        counts
    }

    /// The results that spoil the run; see [`Verdict::is_bad`].
    pub fn bad(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| verdict.is_bad())
    }

    /// Whether nothing spoils the run and something passed.
    pub fn is_good(&self) -> bool {
        self.bad().next().is_none() && self.count(Status::Passed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(case: &str, status: Status) -> Verdict {
        Verdict {
            case: case.into(),
            family: "family".into(),
            status,
            error: None,
            reason: Some("because".into()),
            listed: false,
        }
    }

    #[test]
    fn the_list_decides_what_may_be_unsupported() {
        let listed = Listed::parse("# none yet\n\nfamily/known # softcap\n");
        let judge = |case, status| listed.judge(verdict(case, status));
        assert!(!judge("known", Status::Unsupported).is_bad());
        let wrong = judge("known", Status::Failed);
        assert_eq!(wrong.status, Status::Failed);
        assert_eq!(wrong.reason.as_deref(), Some("because"));
        assert!(wrong.is_bad());
        assert_eq!(judge("known", Status::Passed).status, Status::Failed);
        assert!(!judge("new", Status::Passed).is_bad());
        let new = judge("new", Status::Unsupported);
        assert!(new.is_bad());
        assert_eq!(new.reason.as_deref(), Some("not listed: because"));
    }

    #[test]
    fn remarks_of_passed_cases_are_counted() {
        let mut summary = Summary::default();
        for status in [Status::Passed, Status::Passed, Status::Failed] {
            summary.add(verdict("a", status));
        }
        summary.add(Verdict {
            reason: None,
            ..verdict("b", Status::Passed)
        });
        assert_eq!(summary.remarks(), BTreeMap::from([("because", 2)]));
    }

    #[test]
    fn a_run_in_which_nothing_passed_is_not_good() {
        let listed = Listed::parse("family/known");
        let mut summary = Summary::default();
        assert!(!summary.is_good());
        summary.add(listed.judge(verdict("known", Status::Unsupported)));
        assert!(!summary.is_good());
        summary.add(listed.judge(verdict("a", Status::Passed)));
        assert!(summary.is_good());
        summary.add(listed.judge(verdict("b", Status::Failed)));
        assert!(!summary.is_good());
        assert_eq!(summary.families()["family"].failed, 1);
    }
}
