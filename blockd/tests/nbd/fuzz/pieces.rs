//! Pieces of streams: random bytes, and messages of which one thing or none is wrong.

use proptest::prelude::*;

use crate::peer::{go, long_request, request};

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(number.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(vec!["", "disk", "ro", "disk@snap", "disk@bad", "nothing", "d\0", "ü"])
        .prop_map(String::from)
}

/// A piece of a client's negotiation.
pub fn option_piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        2 => (0u32..14, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, data)| option(number, &data)),
        1 => (0u32..14, any::<u32>()).prop_map(|(number, len)| {
            let mut out = option(number, b"");
            out[12..].copy_from_slice(&len.to_be_bytes());
            out
        }),
        4 => proptest::sample::select(vec![3u32, 8, 11, 5, 2]).prop_map(|number| option(number, b"")),
        4 => (name(), 8u32..12, 0u32..4, 0u32..20, proptest::sample::select(vec!["", "base:", "base:allocation"]))
            .prop_map(|(name, number, count, len, query)| {
                let mut data = (name.len() as u32).to_be_bytes().to_vec();
                data.extend(name.as_bytes());
                data.extend(count.to_be_bytes());
                for i in 0..count {
                    // The last length is the one that may lie.
                    let len = if i + 1 == count { len } else { query.len() as u32 };
                    data.extend(len.to_be_bytes());
                    data.extend(query.as_bytes());
                }
                option(number, &data)
            }),
        4 => (6u32..8, name(), proptest::collection::vec(0u16..5, 0..4), any::<bool>()).prop_map(
            |(number, name, infos, cut)| {
                let data = go(&name, &infos);
                option(number, if cut { &data[..data.len() - 1] } else { &data })
            }
        ),
        1 => name().prop_map(|name| option(1, name.as_bytes())),
    ]
}

/// One request whose framing is right, whatever it asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub flags: u16,
    pub command: u16,
    pub offset: u64,
    pub len: u64,
}

impl Asked {
    /// Bytes of payload that belong to it, if they are few enough for a server to go on.
    pub fn payload(&self, extended: bool) -> u64 {
        let flagged = extended && self.flags & 32 != 0;
        if self.command == 1 || flagged { self.len } else { 0 }
    }

    pub fn encode(&self, extended: bool, cookie: u64) -> Vec<u8> {
        let payload = self.payload(extended) as usize;
        let mut out = if extended {
            long_request(self.flags, self.command, cookie, self.offset, self.len)
        } else {
            request(self.flags, self.command, cookie, self.offset, self.len as u32)
        };
        out.resize(out.len() + payload, 0xa5);
        out
    }
}

/// Requests of every kind; those with a payload are short.
pub fn asked() -> impl Strategy<Value = Asked> {
    let offset = prop_oneof![
        Just(0u64),
        Just(512),
        0u64..(1 << 20),
        (0u64..2048).prop_map(|n| n * 512),
        Just((1 << 20) - 512),
        Just(1 << 20),
        any::<u64>()
    ];
    let len = prop_oneof![
        Just(0u64),
        Just(512),
        Just(4096),
        Just(65536),
        0u64..5000,
        Just(1 << 20),
        Just(32 << 20),
        Just((32 << 20) + 1),
        Just(u64::from(u32::MAX)),
        any::<u64>()
    ];
    let flags = prop_oneof![3 => Just(0u16), 2 => 0u16..64, 1 => any::<u16>()];
    let command = prop_oneof![8 => 0u16..8, 1 => any::<u16>()];
    (flags, command, offset, len).prop_map(|(flags, command, offset, len)| {
        // A disconnect ends the stream; another test says so.
        let command = if command == 2 { 1 } else { command };
        let carries = command == 1 || flags & 32 != 0;
        Asked { flags, command, offset, len: if carries { len % 20_000 } else { len } }
    })
}

/// A piece of a client's transmission, whose framing may be wrong.
pub fn request_piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        6 => (asked(), any::<bool>(), any::<u64>()).prop_map(|(asked, extended, cookie)| {
            asked.encode(extended, cookie)
        }),
        2 => (asked(), any::<bool>(), any::<u64>()).prop_map(|(asked, extended, cookie)| {
            // Its payload is missing.
            let mut out = Asked { len: 0, ..asked.clone() }.encode(extended, cookie);
            let at = out.len() - 4;
            out[at..].copy_from_slice(&(asked.len as u32).to_be_bytes());
            out
        }),
    ]
}
