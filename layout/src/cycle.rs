//! Telling a loop from a long way, without memory (Brent, "An improved Monte Carlo factorization algorithm", section 2).

/// Watches a walk along numbers, each of which leads to one next.
#[derive(Debug)]
pub(crate) struct Cycle {
    /// A number that was passed; it moves up at each power of two steps.
    mark: Option<u64>,
    steps: u64,
    limit: u64,
}

impl Cycle {
    pub(crate) const fn new() -> Cycle {
        Cycle { mark: None, steps: 0, limit: 1 }
    }

    /// The walk comes to a number; true if it goes round in a loop, which a few rounds show.
    pub(crate) fn closes(&mut self, number: u64) -> bool {
        if self.mark == Some(number) {
            return true;
        }
        self.steps += 1;
        if self.steps == self.limit {
            (self.mark, self.steps, self.limit) = (Some(number), 0, self.limit.saturating_mul(2));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Cycle;

    /// Steps of a walk from 0 that goes up by one and from `last` back to `again`.
    fn steps(last: u64, again: Option<u64>) -> Option<u64> {
        let (mut cycle, mut at) = (Cycle::new(), 0);
        for step in 0..10 * (last + 1) {
            if cycle.closes(at) {
                return Some(step);
            }
            at = if at == last { again? } else { at + 1 };
        }
        panic!("a loop of {} that nobody sees", last - again.unwrap_or(0) + 1);
    }

    #[test]
    fn loops_are_found_and_ways_that_end_are_none() {
        for last in 0..70 {
            assert_eq!(steps(last, None), None);
            for again in 0..=last {
                assert!(steps(last, Some(again)).is_some_and(|found| found > last));
            }
        }
    }
}
