//! An encoder's weights under torchvision's names.

use std::collections::HashMap;

use anyhow::Result;

use crate::checkpoint;
use crate::eval::Encoder;

/// The file's bytes: everything that torchvision's `state_dict` holds but the classifier, in its types.
/// # Errors
/// What libtorch says.
pub(super) fn serialize(encoder: &Encoder, metadata: Vec<(String, String)>) -> Result<Vec<u8>> {
    let metadata: HashMap<String, String> = metadata.into_iter().chain([("format".into(), "pt".into())]).collect();
    checkpoint::serialize(&encoder.params.state_dict(encoder.batches_tracked), metadata)
}
