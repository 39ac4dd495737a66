//! `byol train`: interrupted, resumed, short of disk, with broken numbers, damaged checkpoints.

#[path = "../support/mod.rs"]
mod support;

mod checkpoint_damage;
mod disk;
mod encoder_file;
mod families;
mod init;
mod killed;
mod non_finite;
mod old_runs;
mod quality;
mod repeat;
mod resume;
mod run;
mod signals;
