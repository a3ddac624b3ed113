package osimage

import (
	"context"
	"fmt"
	"os"
)

// features are what the image's ext4 has, beginning from none. GRUB 2.06, the
// oldest loader that may have to read it, refuses filesystems with features it
// does not know (grub-core/fs/ext2.c: EXT2_DRIVER_SUPPORTED_INCOMPAT);
// metadata_csum_seed and orphan_file, which newer mke2fs sets by itself, are
// such. resize_inode keeps room to grow without moving blocks.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// growBlocks is how large the filesystem can become with the room it keeps:
// 2 TiB. Beyond that resize2fs moves blocks, which takes longer and works, too.
const growBlocks = 2 << 40 / 4096

// label is for people; nothing searches for it, since a machine may have two.
const label = "lpmos-root"

// mkfs makes the filesystem in the new file raw from tree, with owners, modes,
// links and extended attributes (capabilities).
func (b *builder) mkfs(ctx context.Context, tree, raw, uuid, seed string) error {
	u, err := measure(tree)
	if err != nil {
		return fmt.Errorf("measure the tree: %w", err)
	}
	const mb = 1 << 20
	size := u.bytes + u.bytes/4 + int64(b.JournalMB+b.MarginMB)*mb
	// Inodes at one for 16 KiB are a 64th of the filesystem.
	size += size / 64
	size = (size + mb - 1) / mb * mb
	if u.inodes > size/16384*9/10 {
		return fmt.Errorf("%d files do not fit a filesystem of %d bytes with an inode for 16 KiB", u.inodes, size)
	}
	err = b.run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "1",
		"-O", features, "-J", fmt.Sprintf("size=%d", b.JournalMB),
		"-L", label, "-U", uuid,
		// Lazy initialisation would leave inode tables of the last owner's
		// bytes for the kernel to clear.
		"-E", fmt.Sprintf("hash_seed=%s,resize=%d,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", seed, growBlocks),
		"-d", tree, raw, fmt.Sprintf("%dm", size/mb))
	if err != nil {
		return err
	}
	return os.Chmod(raw, 0o600)
}
