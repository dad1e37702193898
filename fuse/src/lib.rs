//! The FUSE mounter of VexFS.
