//! The two encoders of a run.

/// Online or target encoder of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Branch {
    /// The online encoder, trained by the optimizer.
    #[default]
    Online,
    /// Its moving average, with BatchNorm statistics recomputed on training images.
    Target,
}

impl Branch {
    /// `online` or `target`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Target => "target",
        }
    }
}
