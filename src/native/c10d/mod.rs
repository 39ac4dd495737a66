//! The Rust side of `c10d.cpp`: c10d's store, process group and gradient Reducer, each behind a safe type.

mod group;
mod nccl;
mod store;

pub use group::{ProcessGroup, Reducer};
pub use store::{Listen, Store};
