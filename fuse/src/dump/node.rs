//! A tree of named values in a fixed order, for people and as JSON.

use std::fmt::{Display, Formatter};

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::printable::Printable;

/// Something to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// A word.
    Text(String),
    /// A count, or a number of something.
    Number(u64),
    /// An address: hexadecimal for people.
    Address(u64),
    /// Whether something is so: yes or no for people.
    Flag(bool),
    /// Several of one sort.
    List(Vec<Node>),
    /// Named parts.
    Fields(Vec<(&'static str, Node)>),
}

impl From<u64> for Node {
    fn from(value: u64) -> Self {
        Node::Number(value)
    }
}

impl From<u32> for Node {
    fn from(value: u32) -> Self {
        Node::Number(value.into())
    }
}

impl From<u16> for Node {
    fn from(value: u16) -> Self {
        Node::Number(value.into())
    }
}

impl From<usize> for Node {
    fn from(value: usize) -> Self {
        Node::Number(value as u64)
    }
}

impl From<bool> for Node {
    fn from(value: bool) -> Self {
        Node::Flag(value)
    }
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Node::Text(text.into())
    }
}

impl From<String> for Node {
    fn from(text: String) -> Self {
        Node::Text(text)
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The lines of a page as od(1) has them: offset, bytes, text; lines like the one before are left out.
pub fn hex_lines(bytes: &[u8]) -> Node {
    let mut lines = Vec::new();
    let mut last: Option<&[u8]> = None;
    let mut skipped = false;
    for (i, row) in bytes.chunks(16).enumerate() {
        if last == Some(row) {
            if !skipped {
                lines.push(Node::Text("*".into()));
            }
            skipped = true;
            continue;
        }
        (last, skipped) = (Some(row), false);
        let pairs: Vec<String> = row.chunks(2).map(hex).collect();
        let text: String = row
            .iter()
            .map(|b| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '.' })
            .collect();
        lines.push(Node::Text(format!("{:04x}  {:<40} {text}", i * 16, pairs.join(" "))));
    }
    Node::List(lines)
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Text(text) => to.serialize_str(text),
            Node::Number(number) | Node::Address(number) => to.serialize_u64(*number),
            Node::Flag(flag) => to.serialize_bool(*flag),
            Node::List(items) => {
                let mut seq = to.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Node::Fields(fields) => {
                let mut map = to.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl Node {
    fn write(&self, f: &mut Formatter<'_>, indent: usize) -> std::fmt::Result {
        match self {
            Node::Text(_) | Node::Number(_) | Node::Address(_) | Node::Flag(_) => {
                self.write_simple(f)?;
                writeln!(f)
            }
            Node::List(items) => items.iter().try_for_each(|item| {
                write!(f, "{:indent$}", "")?;
                item.write_in_line(f, indent)
            }),
            Node::Fields(fields) => fields.iter().try_for_each(|(name, value)| {
                write!(f, "{:indent$}{name}:", "")?;
                match value {
                    Node::List(items) if items.is_empty() => writeln!(f, " none"),
                    Node::List(_) | Node::Fields(_) => {
                        writeln!(f)?;
                        value.write(f, indent + 2)
                    }
                    _ => {
                        write!(f, " ")?;
                        value.write(f, 0)
                    }
                }
            }),
        }
    }

    fn write_simple(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Text(text) => write!(f, "{}", Printable(text)),
            Node::Number(number) => write!(f, "{number}"),
            Node::Address(address) => write!(f, "{address:#x}"),
            Node::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Node::List(_) | Node::Fields(_) => Ok(()),
        }
    }

    /// Fields of simple values stand in one line, so that lists read as tables.
    fn write_in_line(&self, f: &mut Formatter<'_>, indent: usize) -> std::fmt::Result {
        let Node::Fields(fields) = self else { return self.write(f, indent) };
        let is_simple = |value: &Node| !matches!(value, Node::List(_) | Node::Fields(_));
        let mut between = "";
        for (name, value) in fields.iter().filter(|(_, value)| is_simple(value)) {
            write!(f, "{between}{name} ")?;
            value.write_simple(f)?;
            between = "  ";
        }
        writeln!(f)?;
        let rest: Vec<_> = fields.iter().filter(|(_, value)| !is_simple(value)).cloned().collect();
        Node::Fields(rest).write(f, indent + 2)
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.write(f, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_lists_are_tables() {
        let row = |a: u64| Node::Fields(vec![("z", a.into()), ("a", Node::Address(a))]);
        let node = Node::Fields(vec![("name", "x".into()), ("rows", Node::List(vec![row(1), row(17)]))]);
        assert_eq!(node.to_string(), "name: x\nrows:\n  z 1  a 0x1\n  z 17  a 0x11\n");
        let json = serde_json::to_string(&node).unwrap();
        assert_eq!(json, r#"{"name":"x","rows":[{"z":1,"a":1},{"z":17,"a":17}]}"#);
        let node = Node::Fields(vec![("clean", true.into()), ("name", "a\nb".into())]);
        assert_eq!(node.to_string(), "clean: yes\nname: a\\nb\n");
        assert_eq!(serde_json::to_string(&node).unwrap(), r#"{"clean":true,"name":"a\nb"}"#);
    }

    #[test]
    fn equal_lines_of_bytes_are_shown_once() {
        let mut bytes = [0; 64];
        bytes[63] = b'A';
        let Node::List(lines) = hex_lines(&bytes) else { panic!("a list") };
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], Node::Text("*".into()));
        assert!(lines[2].to_string().ends_with("...............A\n"));
    }
}
