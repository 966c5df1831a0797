//! The part of Terraform's template language that `deploy/nginx/stream.conf.tftpl` is written in: `for`, `if`, `else` on lines of their own,
//! names, and whether a list is empty. `deploy/nginx/check.sh` compares with Terraform itself where it is installed.

use serde_json::{Map, Value};

/// Renders a template with these variables.
///
/// # Panics
/// If it is written in more than that part, or names what is not there.
pub fn render(template: &str, variables: &Value) -> String {
    let variables = variables.as_object().expect("an object").clone();
    let lines: Vec<_> = template.lines().collect();
    let mut text = String::new();
    let read = block(&lines, &variables, true, &mut text);
    assert_eq!(read, lines.len(), "line {} ends what nothing began", read + 1);
    text
}

/// Renders up to the end of a block, if it is to be shown at all; returns how many lines that is.
fn block(lines: &[&str], variables: &Map<String, Value>, shown: bool, text: &mut String) -> usize {
    let mut at = 0;
    while at < lines.len() {
        let Some(directive) = lines[at].strip_prefix("%{ ").map(|rest| rest.strip_suffix(" ~}").expect("a whole line"))
        else {
            if shown {
                *text += &interpolated(lines[at], variables);
                text.push('\n');
            }
            at += 1;
            continue;
        };
        let words: Vec<_> = directive.split(' ').collect();
        let inside = &lines[at + 1..];
        match words[..] {
            ["for", item, "in", list] => {
                let items = variables[list].as_array().expect("a list").clone();
                let mut skipped = String::new();
                let size = block(inside, variables, false, &mut skipped);
                for value in items {
                    let mut variables = variables.clone();
                    variables.insert(item.into(), value);
                    block(inside, &variables, shown, text);
                }
                assert_eq!(inside[size], "%{ endfor ~}");
                at += size + 2;
            }
            ["if", ref condition @ ..] => {
                let holds = match condition {
                    [name] => variables[*name].as_bool().expect("true or false"),
                    [length, "==", "0"] => variables[list_in(length)].as_array().expect("a list").is_empty(),
                    _ => panic!("'{directive}' is not understood"),
                };
                let mut size = block(inside, variables, shown && holds, text);
                if inside[size] == "%{ else ~}" {
                    size += 1 + block(&inside[size + 1..], variables, shown && !holds, text);
                }
                assert_eq!(inside[size], "%{ endif ~}");
                at += size + 2;
            }
            ["endfor" | "endif" | "else"] => return at,
            _ => panic!("'{directive}' is not understood"),
        }
    }
    at
}

/// The name in `length(name)`.
fn list_in(length: &str) -> &str {
    length.strip_prefix("length(").and_then(|rest| rest.strip_suffix(')')).expect("length(name)")
}

fn interpolated(line: &str, variables: &Map<String, Value>) -> String {
    let mut parts = line.split("${");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (expression, rest) = part.split_once('}').expect("it ends on the same line");
        let value = &variables[expression];
        text += &value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_repeated_and_left_out_as_terraform_does_it() {
        let template = "a {\n%{ for s in list ~}\n    server ${s};\n%{ endfor ~}\n%{ if flag ~}\n  yes\n\
                        %{ else ~}\n  no ${number}\n%{ endif ~}\n}\n";
        let variables = |flag| json!({"list": ["x:1", "y:2"], "flag": flag, "number": 7});
        let servers = "a {\n    server x:1;\n    server y:2;\n";
        assert_eq!(render(template, &variables(true)), format!("{servers}  yes\n}}\n"));
        assert_eq!(render(template, &variables(false)), format!("{servers}  no 7\n}}\n"));
        let empty = "%{ if length(list) == 0 ~}\nnone\n%{ for s in list ~}\n%{ endfor ~}\n%{ endif ~}\n";
        assert_eq!(render(empty, &variables(true)), "");
        assert_eq!(render(empty, &json!({"list": []})), "none\n");
    }

    #[test]
    fn the_rendered_examples_are_what_the_template_renders() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy/nginx");
        let template = fs::read_to_string(directory.join("stream.conf.tftpl")).unwrap();
        let mut count = 0;
        for entry in fs::read_dir(directory.join("examples")).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "json") {
                let variables = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
                let (rendered, expected) = (render(&template, &variables), file.with_extension("conf"));
                if std::env::var_os("EKM_UPDATE_GOLDEN").is_some() {
                    fs::write(&expected, &rendered).unwrap();
                }
                assert_eq!(fs::read_to_string(&expected).unwrap(), rendered, "{}", expected.display());
                count += 1;
            }
        }
        assert!(count >= 3, "{count}");
    }
}
