//! Patterns: `*` stands for any run of characters, also for none; everything else stands for itself.

/// Whether `text` fits `pattern`. Linear in both, without allocation: every literal is searched for once, from left to
/// right, and taking the first place where it fits never costs a later one its own.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    match last {
        Some(end) => rest.ends_with(end),
        None => rest.is_empty(),
    }
}

/// Whether whatever fits `narrow` also fits `wide`. A star of `narrow` can be any text, so only a star of `wide` can
/// take it: it is enough to read the one pattern as a text of the other.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    matches(wide, narrow)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_any_run_and_everything_else_for_itself() {
        assert!(matches("*", "") && matches("**", "x") && matches("a*", "a") && matches("*a", "ba"));
        assert!(matches("a*b*c", "a-b-b-c"));
        assert!(!matches("a*a", "a"), "the two ends must not overlap");
        assert!(!matches("", "a") && !matches("a", "") && !matches("a", "aa") && !matches("a*b", "abc"));
        assert!(!matches("a.c", "abc") && !matches("a?c", "abc") && !matches("[a]", "a"), "only the star is special");
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_any_other() {
        // A matcher that tries every place for every star would not come back in a lifetime.
        let pattern = format!("{}b", "*a".repeat(400));
        assert!(!matches(&pattern, &"a".repeat(1024)));
        assert!(matches(&pattern, &format!("{}b", "a".repeat(1023))));
    }

    /// By the definition, trying every length for every star.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|taken| by_definition(rest, &text[taken..])),
            Some((literal, rest)) => text.first() == Some(literal) && by_definition(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_the_definition_says(pattern in "[ab*]{0,8}", text in "[ab*]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_pattern_covers_another_exactly_if_nothing_fits_the_other_alone(
            wide in "[ab*]{0,5}", narrow in "[ab*]{0,5}",
        ) {
            // A star as a letter that the wide pattern has not, as nothing, and as letters that it has.
            let texts = ["c", "", "a", "b", "ab", "ba"].map(|star| narrow.replace('*', star));
            prop_assert_eq!(covers(&wide, &narrow), texts.iter().all(|text| matches(&wide, text)));
        }
    }
}
