//! Settings of a run in TensorBoard's HParams plugin: messages of tensorboard/plugins/hparams/plugin_data.proto, and what
//! they are wrapped in (only the fields used here).

use std::collections::BTreeMap;

use prost::{Message, Oneof};
use serde_json::Value as Json;

/// `DT_FLOAT`.
const FLOAT: i32 = 1;

/// `SummaryMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

/// `HParamsPluginData`.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(message, optional, tag = "3")]
    session_start: Option<SessionStart>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    hparams: BTreeMap<String, Setting>,
    #[prost(double, tag = "5")]
    start_time: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct Setting {
    #[prost(oneof = "Kind", tags = "2, 3, 4")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Kind {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
}

impl Metadata {
    /// These settings of a run that started at `start_time`, seconds since 1970.
    pub fn new(settings: &[(String, Json)], start_time: f64) -> Self {
        let kind = |value: &Json| match value {
            Json::Bool(value) => Kind::Bool(*value),
            Json::String(text) => Kind::Text(text.clone()),
            other => other.as_f64().map_or_else(|| Kind::Text(other.to_string()), Kind::Number),
        };
        let hparams = settings.iter().map(|(key, value)| (key.clone(), Setting { kind: Some(kind(value)) })).collect();
        let content = Content { session_start: Some(SessionStart { hparams, start_time }) }.encode_to_vec();
        Self { plugin: Some(Plugin { name: "hparams".into(), content }) }
    }
}

/// A `TensorProto` of no elements.
#[derive(Clone, PartialEq, Message)]
pub struct NullTensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {}

impl NullTensor {
    /// What the plugin writes beside its data.
    pub fn new() -> Self {
        Self { dtype: FLOAT, shape: Some(Shape { dim: vec![Dim {}] }) }
    }
}
