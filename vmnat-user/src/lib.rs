//! The user half of vmnat as a library.
