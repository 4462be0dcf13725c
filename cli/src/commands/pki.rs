//! `coeval pki`

use snapshot::http::{Identity, Role};

use super::{Failure, print};
use crate::args::{PkiCommand, PkiInitArgs, PkiIssueArgs};
use crate::pki::Authority;

/// Makes an authority, or has it issue a certificate.
///
/// # Errors
/// [`crate::pki::PkiError`].
pub fn run(command: &PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Init(PkiInitArgs { dir }) => {
            Authority::create(dir)?;
            let directory = dir.display();
            print(&format!(
                "made an authority in {directory}; keep {directory}/ca.key there, and give every machine \
                 {directory}/ca.pem"
            ))
        }
        PkiCommand::Issue(args) => {
            let files = Authority::open(&args.dir)?.issue(&identity(args)?, &args.address, args.days)?;
            print(&format!(
                "[tls]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"",
                files.cert.display(),
                files.key.display(),
                files.ca.display()
            ))
        }
    }
}

fn identity(args: &PkiIssueArgs) -> Result<Identity, Failure> {
    let who = &args.who;
    let named = [
        (Role::Server, &who.server),
        (Role::Host, &who.host),
        (Role::Operator, &who.operator),
        (Role::Viewer, &who.viewer),
    ];
    let named = named.into_iter().find_map(|(role, name)| Some((role, name.clone()?)));
    let (role, name) = named.ok_or("say for whom: --server, --host, --operator or --viewer")?;
    Ok(Identity { role, name })
}
