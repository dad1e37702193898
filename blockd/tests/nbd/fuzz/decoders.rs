//! Every decoder on any bytes: no panic, and what is decoded is what stands there.

use blockd::nbd::proto::chunk::{CHUNK_BYTES, EXTENDED_CHUNK_BYTES, ReceivedChunk};
use blockd::nbd::proto::info::Info;
use blockd::nbd::proto::meta::MetaData;
use blockd::nbd::proto::option::{GoData, OptionHead, OptionReplyHead};
use blockd::nbd::proto::reply::{SIMPLE_REPLY_BYTES, SimpleReply};
use blockd::nbd::proto::request::{EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request};
use blockd::nbd::proto::{errno, greeting};
use proptest::prelude::*;

use super::runner;
use crate::peer::{go, meta};

/// Random bytes behind the right magic, or a wrong one.
fn framed<const N: usize>(magic: &'static [u8]) -> impl Strategy<Value = [u8; N]> {
    (proptest::array::uniform32(any::<u8>()), any::<bool>()).prop_map(move |(random, right)| {
        let mut out = [0; N];
        out.copy_from_slice(&random[..N]);
        if right {
            out[..magic.len()].copy_from_slice(magic);
        }
        out
    })
}

#[test]
fn heads_are_decoded_as_they_stand() {
    runner(20)
        .run(&framed::<REQUEST_BYTES>(&[0x25, 0x60, 0x95, 0x13]), |bytes| {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes);
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<EXTENDED_REQUEST_BYTES>(&[0x21, 0xe4, 0x1c, 0x71]), |bytes| {
            if let Some(request) = Request::decode_extended(&bytes) {
                let mut expected = bytes;
                if request.command == 1 {
                    // A write says its payload when we send it.
                    expected[5] |= 32;
                }
                prop_assert_eq!(request.encode_extended(), expected);
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<SIMPLE_REPLY_BYTES>(&[0x67, 0x44, 0x66, 0x98]), |bytes| {
            if let Some(reply) = SimpleReply::decode(&bytes) {
                prop_assert_eq!(reply.encode(), bytes);
                // Any number is some error.
                if reply.errno != 0 {
                    prop_assert!(!errno::from_wire(reply.errno, "a read", "").to_string().is_empty());
                }
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<CHUNK_BYTES>(&[0x66, 0x8e, 0x33, 0xef]), |bytes| {
            if let Some(chunk) = ReceivedChunk::decode(&bytes) {
                prop_assert_eq!(chunk.cookie.to_be_bytes(), &bytes[8..16]);
                prop_assert_eq!(
                    chunk.payload_bytes,
                    u64::from(u32::from_be_bytes(bytes[16..].try_into().unwrap()))
                );
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<EXTENDED_CHUNK_BYTES>(&[0x6e, 0x8a, 0x27, 0x8c]), |bytes| {
            if let Some(chunk) = ReceivedChunk::decode_extended(&bytes) {
                prop_assert_eq!(chunk.payload_bytes.to_be_bytes(), &bytes[24..]);
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<16>(b"IHAVEOPT"), |bytes| {
            if let Some(head) = OptionHead::decode(&bytes) {
                prop_assert_eq!(head.data_bytes.to_be_bytes(), &bytes[12..]);
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<20>(&[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]), |bytes| {
            if let Some(head) = OptionReplyHead::decode(&bytes) {
                prop_assert_eq!(head.kind.to_be_bytes(), &bytes[12..16]);
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&framed::<18>(b"NBDMAGICIHAVEOPT"), |bytes| {
            if let Some(flags) = greeting::decode(&bytes) {
                prop_assert_eq!(greeting::encode(flags), bytes);
            }
            Ok(())
        })
        .unwrap();
}

/// Data that was right before one byte of it was changed, or it was cut.
fn damaged(whole: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (whole, any::<proptest::sample::Index>(), any::<u8>(), 0usize..3).prop_map(
        |(mut bytes, at, byte, how)| {
            if bytes.is_empty() {
                return bytes;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                _ => {}
            }
            bytes
        },
    )
}

#[test]
fn data_is_within_its_bounds() {
    let name = "[a-z@]{0,12}";
    let asked =
        (name, proptest::collection::vec(any::<u16>(), 0..6)).prop_map(|(name, infos)| go(&name, &infos));
    runner(20)
        .run(&damaged(asked), |bytes| {
            if let Some(data) = GoData::decode(&bytes) {
                let infos: Vec<u16> = (0..=u16::MAX).filter(|&info| data.asks_for(info)).collect();
                // What is not the name, its length and the count is the infos; some may stand there twice.
                prop_assert!(data.name.len() + 6 + infos.len() * 2 <= bytes.len());
            }
            Ok(())
        })
        .unwrap();
    let queries = proptest::collection::vec("[a-z:]{0,16}", 0..5);
    let asked = (name, queries)
        .prop_map(|(name, queries)| meta(&name, &queries.iter().map(String::as_str).collect::<Vec<_>>()));
    runner(20)
        .run(&damaged(asked), |bytes| {
            if let Some(data) = MetaData::decode(&bytes) {
                let queries: usize = data.queries.iter().map(|query| query.len() + 4).sum();
                prop_assert_eq!(8 + data.name.len() + queries, bytes.len());
            }
            Ok(())
        })
        .unwrap();
    runner(20)
        .run(&(0u16..5, proptest::collection::vec(any::<u8>(), 0..20)), |(kind, data)| {
            let bytes = [&kind.to_be_bytes()[..], &data].concat();
            if let Some(info) = Info::decode(&bytes)
                && let Info::BlockSizes(sizes) = info
            {
                prop_assert!(sizes.min.is_power_of_two() && sizes.payload_max >= sizes.min);
            }
            Ok(())
        })
        .unwrap();
}
