// Package imagepack turns a raw ext4 filesystem into a pack of independently
// compressed, independently verifiable chunks with a manifest that names each
// by digest ([lpmos.ImageManifest]), and turns it back.
//
// Which blocks are packed is decided by the filesystem's own block bitmaps
// (Linux, Documentation/filesystems/ext4): every block that is allocated is
// covered by a chunk, whatever it holds, because the disk it will be written
// to is full of older data. Holes are free blocks and nothing else.
//
// It is not an installer and does not look at files. Packing the same bytes
// with the same options gives the same pack and the same manifest, whatever
// the number of processors. All functions may be called concurrently for
// different output directories; for the same one too, since a blob appears
// under its digest by rename.
package imagepack
