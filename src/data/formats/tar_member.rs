//! The names and labels of a webdataset shard's members: the key and suffix of a name, the class in a label.

use super::labels::class_text;
use crate::data::KeyRule;

/// Longest class name, bytes; a longer text is something else.
const MAX_CLASS_BYTES: usize = 200;

/// Priority of a member as the label, the lowest wins; `None` if it is not a label: `x.cls`, `x.output.cls`, `x.json`
/// and `x.meta.json`.
pub(super) fn label_rank(suffix: &str) -> Option<u8> {
    let (last, dotted) = suffix.rsplit_once('.').map_or((suffix, 0), |(_, last)| (last, 1));
    match last {
        "cls" => Some(dotted),
        "json" => Some(2 + dotted),
        _ => None,
    }
}

/// Key and suffix (in lower case) of a member; `None` for members outside of samples: hidden files and those whose
/// path starts with a component such as `__info__`.
pub(super) fn split(name: &str, rule: KeyRule) -> Option<(&str, String)> {
    let first = name.split('/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let file = &name[base..];
    let dot = match rule {
        _ if file.starts_with('.') => None,
        KeyRule::FirstDot => file.find('.'),
        KeyRule::LastDot => file.rfind('.'),
    };
    let dot = base + dot?;
    Some((&name[..dot], name[dot + 1..].to_lowercase()))
}

/// The class in a text: `Some(None)` for a number that means no class, `None` for what is no class.
pub(super) fn class(text: &str) -> Option<Option<String>> {
    let text = text.trim();
    let name = !text.is_empty() && text.len() <= MAX_CLASS_BYTES && !text.contains(char::is_control);
    let fits = text.parse::<i64>().map_or(true, |number| number <= i32::MAX.into());
    (name && fits).then(|| class_text(text).map(str::to_string))
}

/// The class of `label` or `cls` in a JSON object; `Some(None)` if it has neither.
pub(super) fn from_json(text: &str) -> Option<Option<String>> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    match json.get("label").or_else(|| json.get("cls")) {
        None | Some(serde_json::Value::Null) => Some(None),
        Some(serde_json::Value::String(name)) => class(name),
        Some(value) => class(&value.as_i64()?.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_a_dot_of_the_base_name() {
        let split = |name, rule| split(name, rule).map(|(key, suffix)| format!("{key} {suffix}"));
        for (name, first, last) in [
            ("a.jpg", Some("a jpg"), Some("a jpg")),
            ("./x.y/a.B.JPG", Some("./x.y/a b.jpg"), Some("./x.y/a.B jpg")),
            ("cam00.t3.png", Some("cam00 t3.png"), Some("cam00.t3 png")),
            ("dir/a", None, None),
            ("dir/._a.jpg", None, None),
            (".jpg", None, None),
            ("__info__/a.jpg", None, None),
            ("x/__info__.jpg", Some("x/__info__ jpg"), Some("x/__info__ jpg")),
            ("__a.jpg", Some("__a jpg"), Some("__a jpg")),
        ] {
            assert_eq!(split(name, KeyRule::FirstDot).as_deref(), first, "{name}");
            assert_eq!(split(name, KeyRule::LastDot).as_deref(), last, "{name}");
        }
    }

    #[test]
    fn labels_are_numbers_or_names_as_text_or_in_json() {
        let text = |class: &str| Some(Some(class.to_string()));
        assert_eq!((class(" 7\n"), class("-1"), class("cat")), (text("7"), Some(None), text("cat")));
        assert_eq!((class(""), class("a\nb"), class(&"x".repeat(201))), (None, None, None));
        assert_eq!(from_json(r#"{"cls": 3, "caption": "x"}"#), text("3"));
        assert_eq!(from_json(r#"{"label": 4, "cls": 3}"#), text("4"));
        assert_eq!(from_json(r#"{"label": "golden retriever"}"#), text("golden retriever"));
        assert_eq!(from_json(r#"{"caption": "x"}"#), Some(None));
        assert_eq!(from_json(r#"{"label": null}"#), Some(None));
        assert_eq!((from_json(r#"{"label": [1]}"#), from_json("{")), (None, None));
        let ranks = ["cls", "output.cls", "json", "meta.json", "txt"].map(label_rank);
        assert_eq!(ranks, [Some(0), Some(1), Some(2), Some(3), None]);
    }
}
