//! The recipes of `configs/`, which are part of the program: `--config NAME` takes one.

use std::path::Path;

use anyhow::{Context, Result};

/// A config that is part of the program.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Name without an ending, as `--config` takes it.
    pub name: &'static str,
    /// The YAML, with its comments.
    pub text: &'static str,
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        /// All of them, the smallest first.
        pub const ALL: &[Recipe] = &[
            $(Recipe { name: $name, text: include_str!(concat!("../../configs/", $name, ".yaml")) }),*
        ];
    };
}

recipes!(
    "quickstart",
    "quickstart_vit",
    "quickstart_convnext",
    "cifar10_cpu",
    "cifar10_resnet18",
    "cifar10_sgd_resnet18",
    "cifar100_resnet18",
    "imagenet_vit_small_300ep",
    "imagenette_resnet18",
    "imagenet100_resnet18",
    "imagenet_convnext_tiny_300ep",
    "photos_resnet18",
    "photos_resnet50",
    "imagenet_resnet50_100ep_batch256",
    "imagenet_resnet50_100ep",
    "mmpretrain_resnet50_200ep",
    "imagenet_resnet50_300ep",
    "imagenet_resnet50_1000ep_batch512",
    "imagenet_resnet50_1000ep",
);

impl Recipe {
    /// The recipe of this name, with or without `.yaml`.
    pub fn find(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".yaml").unwrap_or(name);
        ALL.iter().copied().find(|recipe| recipe.name == name)
    }

    /// The YAML without the line that tells editors where the schema is, which is right only inside `configs/`.
    pub fn portable(&self) -> &'static str {
        match self.text.split_once('\n') {
            Some((line, rest)) if line.starts_with("# yaml-language-server:") => rest,
            _ => self.text,
        }
    }

    /// Its first sentence.
    pub fn summary(&self) -> String {
        let comment = self.portable().lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let text = comment.take_while(|line| !line.starts_with("scripts/")).collect::<Vec<_>>().join(" ");
        let end = [": ", ". ", "; "].iter().filter_map(|mark| text.find(mark)).min();
        text[..end.unwrap_or(text.len())].trim_end_matches('.').to_string()
    }
}

/// A recipe by its name.
/// # Errors
/// No such recipe: which there are.
pub fn get(name: &str) -> Result<Recipe> {
    Recipe::find(name).with_context(|| {
        let names: Vec<&str> = ALL.iter().map(|recipe| recipe.name).collect();
        format!("found no recipe {name}, expected one of {}", names.join(", "))
    })
}

/// The recipe that a path without folders names, unless there is a file of that name.
pub fn named(path: &Path) -> Option<Recipe> {
    let name = path.to_str().filter(|name| !name.contains('/'))?;
    Recipe::find(name).filter(|_| !path.exists())
}

/// The recipe that a missing file in some folder has the name of.
pub fn near(path: &Path) -> Option<Recipe> {
    Recipe::find(path.file_name()?.to_str()?).filter(|_| !path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_config_is_in_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let files = std::fs::read_dir(folder).expect("configs").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> =
            files.filter_map(|name| Some(name.to_str()?.strip_suffix(".yaml")?.into())).collect();
        let mut known: Vec<&str> = ALL.iter().map(|recipe| recipe.name).collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn a_recipe_is_found_by_its_name() {
        assert_eq!(named(Path::new("quickstart")).map(|recipe| recipe.name), Some("quickstart"));
        assert_eq!(named(Path::new("quickstart.yaml")).map(|recipe| recipe.name), Some("quickstart"));
        assert!(named(Path::new("./quickstart")).is_none() && named(Path::new("quick")).is_none());
        assert_eq!(near(Path::new("no/such/quickstart.yaml")).map(|recipe| recipe.name), Some("quickstart"));
        for recipe in ALL {
            let summary = recipe.summary();
            assert!((20..120).contains(&summary.len()), "{}: {summary}", recipe.name);
        }
    }
}
