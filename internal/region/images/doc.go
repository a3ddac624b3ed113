// Package images is a region's cache of blobs: boot artefacts and image packs,
// each named by the SHA-256 of its content.
//
// A blob is fetched once for all who wait for it, resumed by Range (RFC 9110,
// §14) after a broken connection or a restart, and served only after its digest
// was found right in this process, but to those who verify by themselves what
// they read ([Cache.Follow]). What the source says of sizes is believed only as
// far as it helps to fail early.
//
// Files in the directory: {digest} is a whole blob, {digest}.partial the
// beginning of one. A whole blob gets its name after its content is on the
// disk, so that a crash leaves at worst a beginning. The least recently used
// blobs that nobody reads are removed to stay under the limit.
//
// A Cache may be used concurrently. Dir serves blobs that are on this host
// already, without a copy.
package images
