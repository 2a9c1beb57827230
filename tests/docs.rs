//! Holds what the documents say of files, links, keys and metrics to what there is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fanwire::config::Rate;

use crate::support::{TestServer, get};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What marks a line of the tree as not there yet.
const TO_COME: &str = "(to come)";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// README, changelog and everything in docs/.
fn documents() -> Vec<PathBuf> {
    let mut documents = vec![PathBuf::from("README.md"), "CHANGELOG.md".into(), "loadtest/README.md".into()];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match Path::new(ROOT).join(&path).is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "md") => documents.push(path),
                false => {}
            }
        }
    }
    documents
}

/// The targets of a document's links and pictures, code aside.
fn links(text: &str) -> Vec<String> {
    let mut in_code = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    });
    let targets = |line: &str| {
        let parts = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        parts.map(|(target, _)| target.to_owned()).collect::<Vec<_>>()
    };
    prose.flat_map(targets).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for document in documents() {
        let text = read(document.to_str().unwrap());
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            checked += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            let there = Path::new(ROOT).join(&target);
            let has_fragment = || {
                let text = fs::read_to_string(&there).unwrap_or_default();
                text.lines().any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#')) == fragment)
            };
            if !there.exists() || !(fragment.is_empty() || has_fragment()) {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(20 < checked, "only {checked} links were found");
}

/// The paths that the architecture's tree names, and whether each is there by its own word.
fn tree(text: &str) -> Vec<(PathBuf, bool)> {
    let block = text.split("## Files").nth(1).and_then(|rest| rest.split("```").nth(1)).unwrap();
    let mut folders: Vec<(usize, PathBuf)> = Vec::new();
    let mut paths = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let indent = line.len() - line.trim_start().len();
        folders.retain(|(depth, _)| *depth < indent);
        let parent = folders.last().map(|(_, path)| path.clone()).unwrap_or_default();
        // Names come first; a description begins after two blanks, or with the first word that is no path.
        let column = line.trim_start().split("  ").next().unwrap();
        let is_path = |word: &&str| word.contains(['.', '/']) || ["LICENSE", "Makefile", "Dockerfile"].contains(word);
        let names: Vec<_> = column.split_whitespace().filter(|word| *word != "·").take_while(is_path).collect();
        assert!(!names.is_empty(), "no name in the line {line:?}");
        paths.extend(names.iter().map(|name| (parent.join(name), !line.contains(TO_COME))));
        if names[0].ends_with('/') {
            folders.push((indent, parent.join(names[0])));
        }
    }
    paths
}

#[test]
fn every_path_of_the_architecture_exists() {
    let paths = tree(&read("docs/architecture.md"));
    assert!(100 < paths.len(), "only {} paths were found", paths.len());
    let exists = |path: &Path| Path::new(ROOT).join(path).exists();
    let wrong = paths.iter().filter(|(path, there)| exists(path) != *there);
    let wrong: Vec<_> = wrong.map(|(path, there)| format!("{}: there: {}", path.display(), !there)).collect();
    assert!(wrong.is_empty(), "docs/architecture.md is wrong about what is `(to come)`:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_stands_in_the_architecture() {
    let paths: BTreeSet<_> = tree(&read("docs/architecture.md")).into_iter().map(|(path, _)| path).collect();
    for entry in fs::read_dir(Path::new(ROOT).join("src")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(paths.contains(&Path::new("src").join(&name)), "docs/architecture.md lacks src/{}", name.display());
    }
}

#[test]
fn the_example_configuration_has_no_fault() {
    let checked = Command::new(env!("CARGO_BIN_EXE_fanwire"))
        .args(["check", "--config", "fanwire.example.toml"])
        .current_dir(ROOT)
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success(), "fanwire check says: {said}");
}

/// What /metrics shows after everything that counts has happened once.
async fn metrics() -> BTreeSet<String> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = TestServer::with(|config| {
        config.metrics_listen = port.to_string();
        config.limits.frames_per_connection = Rate(Some((2, Duration::from_secs(3600))));
    })
    .await;
    let mut client = server.raw_websocket().await;
    for command in [
        r#"{"type":"publish","id":1,"channel":"plain","data":1}"#,
        r#"{"type":"publish","id":2,"channel":"nobody:a","data":1}"#,
        r#"{"type":"ping","id":3}"#,
    ] {
        client.send_text(command).await;
        client.next_text().await;
    }
    let text = get(port, "/metrics").await.body;
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = families.map(|family| match family.split_once(' ').unwrap() {
        (name, "counter") => format!("{name}_total"),
        (name, "info") => format!("{name}_info"),
        (name, _) => name.to_owned(),
    });
    families.collect()
}

#[tokio::test]
async fn the_metrics_are_those_of_the_documents() {
    let text = read("docs/operations.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let named = rows.filter_map(|row| row.split(['`', '{']).next());
    let named: BTreeSet<_> =
        named.filter(|name| name.starts_with("fanwire_") || name.starts_with("process_")).collect();
    let shown = metrics().await;
    let shown: BTreeSet<_> = shown.iter().map(String::as_str).collect();
    let vain: Vec<_> = named.difference(&shown).collect();
    assert!(vain.is_empty(), "docs/operations.md names metrics that /metrics does not show: {vain:?}");
    let silent: Vec<_> = shown.difference(&named).collect();
    assert!(silent.is_empty(), "docs/operations.md says nothing of {silent:?}");
}
