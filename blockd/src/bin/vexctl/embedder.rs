//! The embedder for a collection: the one that made its vectors, or none.

use anyhow::{Result, bail};
use blockd::embed::{CommandEmbedder, CommandOptions, Embedder, Identity, Kind, LexicalEmbedder};

use crate::cli::EmbedderArgs;

/// Refuses the user's choice of embedder if `identity` is another one.
///
/// # Errors
/// A sentence with both embedders and the remedy.
pub fn check_choice(identity: &Identity, args: &EmbedderArgs) -> Result<()> {
    match (&identity.kind, chosen_name(args)) {
        (Kind::Lexical(_), None) => Ok(()),
        (Kind::Command { name }, Some(chosen)) if name == chosen => Ok(()),
        (Kind::Lexical(_), Some(chosen)) => bail!(
            "the collection's vectors were made by {}, not by `{chosen}`; leave --embed-cmd out, or ingest into another collection",
            identity.describe()
        ),
        (Kind::Command { name }, None) => bail!(
            "the collection's vectors were made by {}; give --embed-cmd CMD --embed-name '{name}', CMD being that \
             command (vexctl never runs a command because a file names it)",
            identity.describe()
        ),
        (Kind::Command { name }, Some(chosen)) => bail!(
            "the collection's vectors were made by {}, not by `{chosen}`; if it is the same model, say so with --embed-name '{name}'",
            identity.describe()
        ),
    }
}

/// The name of the command that the user chose; `None` for the built-in embedder.
pub fn chosen_name(args: &EmbedderArgs) -> Option<&str> {
    args.embed_name.as_deref().or(args.embed_cmd.as_deref())
}

/// The running embedder of a collection of this identity.
///
/// # Errors
/// The user chose another one, or the command fails.
pub fn start(identity: &Identity, args: &EmbedderArgs) -> Result<Box<dyn Embedder>> {
    check_choice(identity, args)?;
    match (&identity.kind, start_command(args)?) {
        (Kind::Lexical(table), _) => Ok(Box::new(LexicalEmbedder::new(table.clone()))),
        (Kind::Command { name }, Some(command)) => {
            if command.dim() != identity.dim {
                bail!(
                    "the embedding command gives vectors of {} elements, those of the collection by `{name}` have {}; it is not the same model",
                    command.dim(),
                    identity.dim
                );
            }
            Ok(Box::new(command))
        }
        (Kind::Command { name }, None) => {
            bail!("the embedding command `{name}` is needed; give it with --embed-cmd")
        }
    }
}

/// Starts `--embed-cmd`, if there is one.
///
/// # Errors
/// The command fails.
pub fn start_command(args: &EmbedderArgs) -> Result<Option<CommandEmbedder>> {
    let Some(command) = &args.embed_cmd else { return Ok(None) };
    let options = CommandOptions { command: command.clone(), timeout_s: args.embed_timeout };
    Ok(Some(CommandEmbedder::start(options)?))
}

#[cfg(test)]
mod tests {
    use blockd::embed::Trainer;

    use super::*;

    fn args(command: Option<&str>, name: Option<&str>) -> EmbedderArgs {
        EmbedderArgs {
            embed_cmd: command.map(Into::into),
            embed_name: name.map(Into::into),
            embed_timeout: 9,
        }
    }

    #[test]
    fn another_embedder_is_refused_with_the_way_out() {
        let lexical = Identity::lexical(Trainer::new().finish());
        let command = Identity { dim: 2, kind: Kind::Command { name: "m1".into() } };
        assert!(check_choice(&lexical, &args(None, None)).is_ok());
        assert!(check_choice(&command, &args(Some("m1"), None)).is_ok());
        assert!(check_choice(&command, &args(Some("/opt/run"), Some("m1"))).is_ok());
        for (identity, args, way_out) in [
            (&lexical, args(Some("m1"), None), "leave --embed-cmd out"),
            (&command, args(None, None), "give --embed-cmd"),
            (&command, args(Some("m2"), None), "--embed-name 'm1'"),
        ] {
            let message = check_choice(identity, &args).unwrap_err().to_string();
            assert!(message.contains(way_out), "{message}");
        }
    }

    #[test]
    fn a_command_of_another_dimension_is_refused() {
        let identity = Identity { dim: 2, kind: Kind::Command { name: "m1".into() } };
        let command = "while read -r l; do echo '[1,2,3]'; done";
        let message = start(&identity, &args(Some(command), Some("m1"))).err().unwrap().to_string();
        assert!(message.contains("of 3 elements"), "{message}");
    }
}
