//! Holds the modules of `src/` to the direction their arrows may point; see `docs/architecture.md`.

use std::{fs, path::Path};

/// The shelves, lowest first. A module may import from shelves before its own.
const SHELVES: &[&[&str]] = &[
    &["domain"],
    &["config", "protocol", "wire"],
    &["telemetry"],
    &["hub", "broker", "gateway"],
    &["node", "consumer"],
    &["session"],
    &["transport", "api", "admin"],
    &["http"],
    &["app", "cli"],
];

/// Outside crates that only some modules may name.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("redis::", &["broker"]),
    ("jsonwebtoken::", &["gateway"]),
    ("axum::", &["transport", "api", "admin", "http", "app"]),
];

#[test]
fn outside_crates_stay_in_their_modules() {
    let mut wrong = Vec::new();
    visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |module, file, text| {
        for (name, allowed) in ONLY_IN {
            let named = code(text).match_indices(name).any(|(at, _)| !code(text)[..at].ends_with([':', '_']));
            if named && !allowed.contains(&module) {
                wrong.push(format!("{file}: names `{name}`, which belongs in {allowed:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_import_only_from_lower_shelves() {
    let mut wrong = Vec::new();
    visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |module, file, text| {
        let own = shelf(module).unwrap_or_else(|| panic!("`{module}` stands on no shelf"));
        for imported in imports(text) {
            if imported != module && shelf(&imported).is_some_and(|other| own <= other) {
                wrong.push(format!("{file}: `{module}` imports `{imported}`"));
            }
        }
    });
    assert!(wrong.is_empty(), "arrows that point up or sideways:\n{}", wrong.join("\n"));
}

fn shelf(module: &str) -> Option<usize> {
    SHELVES.iter().position(|shelf| shelf.contains(&module))
}

/// The text without its comments.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first name after each `crate::`, those in braces included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code(text).split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(first_name(rest));
            continue;
        };
        let mut depth = 0;
        for item in group.split_inclusive([',', '{', '}']) {
            if depth == 0 {
                found.push(first_name(item.trim_start()));
            }
            depth += item.matches('{').count();
            match depth.checked_sub(item.matches('}').count()) {
                Some(inner) => depth = inner,
                None => break, // The group's own closing brace.
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Calls `f` with the top-level module, the path and the text of every source file but `main.rs` and `lib.rs`.
fn visit(src: &Path, f: &mut impl FnMut(&str, &str, &str)) {
    let mut folders = vec![src.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
            let module = relative.split('/').next().unwrap().trim_end_matches(".rs");
            if path.is_dir() {
                folders.push(path.clone());
            } else if relative.ends_with(".rs") && !["main", "lib"].contains(&module) {
                f(module, &relative, &fs::read_to_string(&path).unwrap());
            }
        }
    }
}
