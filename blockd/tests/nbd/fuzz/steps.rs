//! The stream stays in step: whatever is asked for, each request whose framing is right is answered once, with its
//! cookie, in the form that was negotiated, and the request after it is read where it begins.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::pieces::{Asked, asked};
use super::{drive, runner};
use crate::peer::Peer;
use crate::ram::Ram;
use crate::served::{Served, socket};

/// Reads replies off a stream that has ended.
struct Replies<'a> {
    rest: &'a [u8],
}

impl<'a> Replies<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], TestCaseError> {
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let Some((head, rest)) = self.rest.split_at_checked(n) else {
            return Err(TestCaseError::fail(format!(
                "{n} bytes are announced, {} are left",
                self.rest.len()
            )));
        };
        self.rest = rest;
        Ok(head)
    }

    fn number(&mut self, bytes: u64) -> Result<u64, TestCaseError> {
        Ok(self.take(bytes)?.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
    }
}

/// What the answers to one request said.
#[derive(Default)]
struct Answer {
    done: bool,
    failed: bool,
    read_bytes: u64,
}

/// Checks every chunk against its request.
fn chunks(bytes: &[u8], extended: bool, asked: &[Asked]) -> Result<BTreeMap<u64, Answer>, TestCaseError> {
    let mut replies = Replies { rest: bytes };
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    while !replies.rest.is_empty() {
        let magic = replies.number(4)?;
        prop_assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef }, "in step");
        let (flags, kind, cookie) = (replies.number(2)?, replies.number(2)?, replies.number(8)?);
        let Some(request) = asked.get(cookie as usize) else {
            return Err(TestCaseError::fail(format!("cookie {cookie:#x} is of no request")));
        };
        if extended {
            prop_assert_eq!(replies.number(8)?, request.offset, "the request's offset");
        }
        let len = replies.number(if extended { 8 } else { 4 })?;
        prop_assert!(len <= (32 << 20) + 8, "{} bytes of payload", len);
        let mut payload = Replies { rest: replies.take(len)? };
        let answer = answers.entry(cookie).or_default();
        prop_assert!(!answer.done, "nothing follows the last chunk");
        answer.done = flags & 1 != 0;
        match kind {
            0 => prop_assert!(len == 0 && answer.done),
            1 | 2 => {
                prop_assert_eq!(request.command, 0, "only a read has data");
                let offset = payload.number(8)?;
                let bytes = if kind == 2 { payload.number(4)? } else { payload.rest.len() as u64 };
                prop_assert!(offset >= request.offset && offset + bytes <= request.offset + request.len);
                answer.read_bytes += bytes;
            }
            5 | 6 => {
                prop_assert!(request.command == 7 && extended == (kind == 6));
                prop_assert_eq!(payload.number(4)?, 1, "the context");
                let extents = if extended { payload.number(4)? } else { payload.rest.len() as u64 / 8 };
                let (mut sum, width) = (0, if extended { 8 } else { 4 });
                for _ in 0..extents {
                    let len = payload.number(width)?;
                    prop_assert!(len > 0 && matches!(payload.number(width)?, 0 | 3));
                    sum += len;
                }
                prop_assert!(extents >= 1 && payload.rest.is_empty() && sum <= request.len);
            }
            0x8001 => {
                prop_assert!(payload.number(4)? != 0);
                let text = payload.number(2)?;
                prop_assert_eq!(text, payload.rest.len() as u64);
                answer.failed = true;
            }
            other => return Err(TestCaseError::fail(format!("a chunk of type {other}"))),
        }
    }
    Ok(answers)
}

fn simple(bytes: &[u8], asked: &[Asked]) -> Result<BTreeMap<u64, Answer>, TestCaseError> {
    let mut replies = Replies { rest: bytes };
    let mut answers = BTreeMap::new();
    while !replies.rest.is_empty() {
        prop_assert_eq!(replies.number(4)?, 0x6744_6698, "in step");
        let (error, cookie) = (replies.number(4)?, replies.number(8)?);
        let Some(request) = asked.get(cookie as usize) else {
            return Err(TestCaseError::fail(format!("cookie {cookie:#x} is of no request")));
        };
        let read_bytes = if error == 0 && request.command == 0 { request.len } else { 0 };
        replies.take(read_bytes)?;
        let answer = Answer { done: true, failed: error != 0, read_bytes };
        prop_assert!(answers.insert(cookie, answer).is_none(), "answered twice");
    }
    Ok(answers)
}

#[test]
fn every_well_framed_request_is_answered_once() {
    let (_dir, path) = socket();
    let ram = Ram::new(1 << 20);
    let _served = Served::start(&path, ram.clone());
    let streams = (0..3, proptest::collection::vec(asked(), 1..40));
    runner(1)
        .run(&streams, |(form, mut requests)| {
            let extended = form == 2;
            for request in &mut requests {
                if !extended {
                    request.len &= u64::from(u32::MAX);
                }
            }
            // The last one is right in any case, so the stream was in step up to it.
            requests.push(Asked { flags: 0, command: 0, offset: 4096, len: 8192 });
            let bytes: Vec<u8> =
                requests.iter().enumerate().flat_map(|(i, asked)| asked.encode(extended, i as u64)).collect();
            let answers = match form {
                0 => simple(&drive(Peer::transmitting(&path).0, &bytes), &requests)?,
                1 => chunks(&drive(Peer::structured(&path).0, &bytes), false, &requests)?,
                _ => chunks(&drive(Peer::extended(&path).0, &bytes), true, &requests)?,
            };
            prop_assert_eq!(answers.len(), requests.len(), "each is answered");
            for (cookie, answer) in &answers {
                let request = &requests[*cookie as usize];
                prop_assert!(answer.done);
                let expected = if request.command == 0 && !answer.failed { request.len } else { 0 };
                prop_assert_eq!(answer.read_bytes, expected, "request {} {:?}", cookie, request);
            }
            prop_assert!(!answers[&(requests.len() as u64 - 1)].failed);
            ram.wait_connected(0);
            Ok(())
        })
        .unwrap();
}
