//! The `unionfs` command.

fn main() -> std::process::ExitCode {
    unionfs::cli::run()
}
