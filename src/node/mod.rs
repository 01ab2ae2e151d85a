//! Live state: the objects that the kernel knows, the files and directories that it has open.
//!
//! Locks, in the order in which they are taken:
//!
//! 1. [`Node::copying`] of a node, then of its parent, and so on up. Held during a whole copy-up.
//! 2. [`Node::names`] of directories: of one, or of several in order of their numbers (a parent of a
//!    renamed or replaced directory before that directory). Held across the system calls that
//!    change a directory.
//! 3. [`Node::counting`] of one node. Held while names of it come and go in different directories.
//! 4. [`Node::io`] of a file. Held while a file is opened.
//! 5. The state inside a node: held for moments, never across a system call.

mod by_number;
pub mod files;
pub mod io;
mod last_places;
pub mod listings;
pub mod missing;
pub mod object;
pub mod table;

pub use missing::Missing;
pub use object::{Link, Node, State};
pub use table::Table;
