//! What somebody may have meant: the nearest of several names.

/// The candidate that `name` is most likely a slip of, if any is near enough to be worth saying.
///
/// A candidate that differs only in case, `-` and `_` always is; else at most a third of its letters may differ.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if MAX_NAME < name.len() {
        return None; // Nobody slipped that far, and the comparison takes time in proportion to the length.
    }
    let plain = plain(name);
    candidates
        .into_iter()
        .map(|candidate| (distance(&plain, &self::plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The longest name that is compared, in bytes.
const MAX_NAME: usize = 64;

fn plain(name: &str) -> Vec<char> {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// How many letters must be added, dropped, replaced or swapped with their neighbour (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if 1 < i && 1 < j && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let keys = ["max_frame", "max_subscriptions", "ping", "send_queue"];
        for (name, expected) in [
            ("max_frames", Some("max_frame")),
            ("maxFrame", Some("max_frame")),
            ("pign", Some("ping")),
            ("sendqueue", Some("send_queue")),
            ("upstream", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, keys), expected, "{name}");
        }
        assert_eq!(nearest(&"ping".repeat(1000), keys), None);
    }
}
