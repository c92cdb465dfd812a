//! What the kernel says to a batch of requests sent together.
//!
//! Pure. Only the last request of a batch asks to be acknowledged, but the kernel reports failures
//! whatever was asked, in the order of the requests. So the answer to the last one completes the
//! batch, and a request nobody complained about was carried out. Answers are told apart by their
//! sequence numbers alone: one that belongs to no request of the batch is left over from an
//! earlier call and has no part in this one.

use crate::wire::Malformed;
use crate::wire::netlink::{Body, Frames};

/// Collects the answers to the requests numbered from `first` on.
#[derive(Debug)]
pub(super) struct Batch {
    first: u32,
    /// Error number of each request, 0 for none.
    outcomes: Vec<i32>,
    complete: bool,
}

impl Batch {
    /// `length` requests, at least one, with consecutive sequence numbers.
    pub(super) fn new(first: u32, length: usize) -> Self {
        Self {
            first,
            outcomes: vec![0; length],
            complete: false,
        }
    }

    /// Takes the answers of one datagram.
    pub(super) fn take(&mut self, datagram: &[u8]) -> Result<(), Malformed> {
        for frame in Frames::new(datagram) {
            let frame = frame?;
            let Body::Outcome(errno) = frame.body else {
                continue;
            };
            // Sequence numbers wrap around.
            let index = usize::try_from(frame.sequence.wrapping_sub(self.first));
            let Ok(index) = index else { continue };
            if let Some(outcome) = self.outcomes.get_mut(index) {
                *outcome = errno;
                self.complete |= index + 1 == self.outcomes.len();
            }
        }
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The error numbers in the order of the requests, 0 where there was none.
    pub(super) fn into_outcomes(self) -> Vec<i32> {
        self.outcomes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer as the kernel lays it out (`struct nlmsgerr`), with the header of the request.
    fn answer(sequence: u32, errno: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36_u32.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend(0_u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(4711_u32.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_answer_finds_its_request_and_strangers_find_none(
            first in any::<u32>(),
            outcomes in proptest::collection::vec(
                prop_oneof![3 => Just(0), 1 => 1..200_i32], 1..300,
            ),
            stale in proptest::collection::vec((1..500_u32, 0..200_i32), 0..10),
            per_datagram in 1..5_usize,
        ) {
            let last = outcomes.len() - 1;
            let mut answers: Vec<_> = stale
                .iter()
                .map(|(before, errno)| answer(first.wrapping_sub(*before), *errno))
                .collect();
            for (index, errno) in outcomes.iter().enumerate() {
                if *errno != 0 || index == last {
                    let sequence = first.wrapping_add(u32::try_from(index).unwrap());
                    answers.push(answer(sequence, *errno));
                }
            }
            let mut batch = Batch::new(first, outcomes.len());
            let datagrams: Vec<_> = answers.chunks(per_datagram).map(|some| some.concat()).collect();
            let (end, before) = datagrams.split_last().unwrap();
            for datagram in before {
                batch.take(datagram).unwrap();
                prop_assert!(!batch.is_complete());
            }
            batch.take(end).unwrap();
            prop_assert!(batch.is_complete());
            prop_assert_eq!(batch.into_outcomes(), outcomes);
        }

        #[test]
        fn whatever_arrives_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            length in 1..10_usize,
        ) {
            let mut batch = Batch::new(u32::MAX - 2, length);
            let _ = batch.take(&bytes);
            prop_assert_eq!(batch.into_outcomes().len(), length);
        }
    }

    #[test]
    fn a_failure_of_the_last_request_completes_the_batch_too() {
        let mut batch = Batch::new(1, 5);
        for (sequence, errno) in [(2, 17), (4, 3)] {
            batch.take(&answer(sequence, errno)).unwrap();
        }
        assert!(!batch.is_complete());
        batch.take(&answer(5, 2)).unwrap();
        assert!(batch.is_complete());
        assert_eq!(batch.into_outcomes(), [0, 17, 0, 3, 2]);
    }
}
