//! What vectors a collection holds, in the JSON form of `.vexfs/schema`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Type of the stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// 32-bit floats: nothing is lost.
    F32,
    /// 16-bit floats: half the space, three decimal digits.
    F16,
    /// 8-bit integers, -128 to 127.
    I8,
}

/// How far two vectors are from each other; smaller is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// 1 - a.b / (|a||b|): the angle, the length does not count.
    Cosine,
    /// The squared Euclidean distance.
    L2,
    /// -(a.b), the negated inner product.
    Ip,
}

/// The schema of a collection. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Elements of each vector.
    pub dim: usize,
    /// Their type.
    pub element: Element,
    /// The distance.
    pub metric: Metric,
}

impl std::fmt::Display for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().to_owned());
        let element = name(self.element.to_possible_value()).unwrap_or_default();
        let metric = name(self.metric.to_possible_value()).unwrap_or_default();
        write!(f, "{} {element} elements under the {metric} distance", self.dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_as_the_session_file_has_it() {
        let text = r#"{"dim":384,"element":"f32","metric":"cosine"}"#;
        let schema: Schema = serde_json::from_str(text).unwrap();
        assert_eq!(schema, Schema { dim: 384, element: Element::F32, metric: Metric::Cosine });
        assert_eq!(serde_json::to_string(&schema).unwrap(), text);
        assert!(serde_json::from_str::<Schema>(r#"{"dim":1,"element":"b1","metric":"cosine"}"#).is_err());
        assert_eq!(schema.to_string(), "384 f32 elements under the cosine distance");
    }
}
