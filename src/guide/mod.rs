//! The user's guide, one page per subject.

macro_rules! pages {
    ($($page:ident),* $(,)?) => {
        $(#[doc = include_str!(concat!(env!("OUT_DIR"), "/guide/", stringify!($page), ".md"))] pub mod $page {})*
    };
}

pages!(
    data,
    augmentations,
    recipes,
    configuration,
    reference,
    evaluation,
    looking,
    weights,
    exporting,
    fault_tolerance,
    scaling,
    benchmarks,
    verification,
    troubleshooting,
    development,
);
