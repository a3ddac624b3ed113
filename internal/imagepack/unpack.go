package imagepack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/lpmos/lpmos"
)

// Unpack writes every chunk of m, read from pack, to w at its offset, and zeros
// where the manifest wants them. Nothing of a chunk is written unless its digest
// and its length are right. Bytes in holes are left as they are.
func Unpack(ctx context.Context, m *lpmos.ImageManifest, pack io.ReaderAt, w io.WriterAt) error {
	if err := m.Validate(); err != nil {
		return err
	}
	none := make([]byte, chunkBytes)
	for _, z := range m.Zero {
		for at := z.Offset; at < z.Offset+z.Bytes; at += chunkBytes {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := w.WriteAt(none[:min(chunkBytes, z.Offset+z.Bytes-at)], at); err != nil {
				return fmt.Errorf("write zeros at %d: %w", at, err)
			}
		}
	}
	return each(ctx, m, pack, func(c lpmos.Chunk, raw []byte) error {
		_, err := w.WriteAt(raw, c.Offset)
		return err
	})
}

// Verify checks that m is valid and that pack holds every chunk it names: the
// digests are right and each frame decodes to the length promised.
func Verify(ctx context.Context, m *lpmos.ImageManifest, pack io.ReaderAt) error {
	return each(ctx, m, pack, func(lpmos.Chunk, []byte) error { return nil })
}

func each(ctx context.Context, m *lpmos.ImageManifest, pack io.ReaderAt, use func(lpmos.Chunk, []byte) error) error {
	if err := m.Validate(); err != nil {
		return err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(lpmos.MaxChunkBytes))
	if err != nil {
		return fmt.Errorf("make zstd decoder: %w", err)
	}
	defer dec.Close()
	var stored, raw []byte
	for i, c := range m.Chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		stored = append(stored[:0], make([]byte, c.StoredBytes)...)
		if _, err := pack.ReadAt(stored, c.StoredOffset); err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		if sum := sha256.Sum256(stored); hex.EncodeToString(sum[:]) != c.SHA256 {
			return fmt.Errorf("chunk %d does not have the digest %s", i, c.SHA256)
		}
		if raw, err = dec.DecodeAll(stored, raw[:0]); err != nil {
			return fmt.Errorf("decode chunk %d: %w", i, err)
		}
		if int64(len(raw)) != c.Bytes {
			return fmt.Errorf("chunk %d decodes to %d bytes; want %d", i, len(raw), c.Bytes)
		}
		if err := use(c, raw); err != nil {
			return fmt.Errorf("write chunk %d: %w", i, err)
		}
	}
	return nil
}
