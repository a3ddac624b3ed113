// Package imageimport turns somebody else's image into one of ours: it fetches
// a file, verifies it, reads its format in pure Go (qcow2, raw, tar, and their
// xz, zstd and gzip forms), looks inside (package preflight) and packs it once
// into verified chunks (package imagepack).
//
// The bytes come from outside, so everything is bounded: what is fetched, how
// long nothing may come, what it may unpack to and by which factor, and where
// the address may lead (see Guard). The format is what the person said; content
// that is of another is refused instead of being guessed at. Nothing is
// registered here: the result is two blobs in a directory and an entry for the
// catalogue, and an import that fails leaves neither.
package imageimport
