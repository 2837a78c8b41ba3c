//! What the README tells its readers to type.

/// The commands of a text's fenced blocks that have all of `words`, continued lines joined, placeholders as they are.
pub fn commands(text: &str, words: &[&str]) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut command = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
            command.clear();
        } else if inside {
            command.push_str(line);
            if let Some(begun) = command.strip_suffix('\\') {
                command = begun.to_owned();
                continue;
            }
            if words.iter().all(|word| command.contains(word)) {
                commands.push(command.clone());
            }
            command.clear();
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_whole_and_those_that_were_meant() {
        let text = "Say `docker run IMAGE` never.\n```\n# a comment\ndocker run \\\n  IMAGE serve\ndocker ps\n\
                    docker service create IMAGE agent   # or better\n```\ndocker run IMAGE\n";
        let found = commands(text, &["IMAGE"]);
        assert_eq!(found, ["docker run   IMAGE serve", "docker service create IMAGE agent   # or better"]);
        assert_eq!(commands(text, &["IMAGE", "serve"]).len(), 1);
        assert_eq!(commands(text, &["nothing"]), [""; 0]);
    }

    /// Scenarios type these; a README that is told otherwise has to be told here too.
    #[test]
    fn the_readme_names_the_image_by_digest_three_times() {
        let text = std::fs::read_to_string(lab::images::repository().join("README.md")).expect("the README");
        let found = commands(&text, &["REGISTRY/requeen@DIGEST"]);
        assert_eq!(found.len(), 3, "{found:#?}");
        for (command, word) in found.iter().zip(["coordinator serve", "service create", "coordinator install"]) {
            assert!(command.contains(word), "{command} is not {word}");
        }
        // No command of it has the image in any other form.
        assert_eq!(commands(&text, &["REGISTRY/"]), found);
    }
}
