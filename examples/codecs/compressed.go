package codecs

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/rediscache/rediscache"
)

// Compressed returns a codec that stores what codec encodes, compressed with zstd and
// protected by a checksum. It refuses a value whose encoding is longer than maxBytes,
// in Encode and in Decode: a value of a few kilobytes in Redis can decompress to
// gigabytes. Compressed panics if maxBytes is not positive.
//
// Compression pays for encodings of some hundred bytes and more. A shorter encoding
// grows by up to 14 bytes.
func Compressed[V any](codec rediscache.Codec[V], maxBytes int) rediscache.Codec[V] {
	if maxBytes <= 0 {
		panic(fmt.Sprintf("codecs: Compressed: maxBytes %d is not positive", maxBytes))
	}
	writer, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		panic(err)
	}
	reader, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(uint64(max(maxBytes, zstd.MinWindowSize)))) // the reader refuses every frame below that
	if err != nil {
		panic(err)
	}
	return &compressed[V]{codec, maxBytes, writer, reader}
}

// compressed is immutable. Its writer and reader are not used as streams, so they have
// no goroutine to stop.
type compressed[V any] struct {
	codec    rediscache.Codec[V]
	maxBytes int
	writer   *zstd.Encoder
	reader   *zstd.Decoder
}

func (c *compressed[V]) Encode(value V) ([]byte, error) {
	plain, err := c.codec.Encode(value)
	if err != nil {
		return nil, err
	}
	if err := c.checkLength(plain); err != nil {
		return nil, fmt.Errorf("codecs: compress: %w", err)
	}
	return c.writer.EncodeAll(plain, nil), nil
}

func (c *compressed[V]) Decode(data []byte) (V, error) {
	plain, err := c.decompress(data)
	if err != nil {
		var zero V
		return zero, fmt.Errorf("codecs: decompress: %w", err)
	}
	return c.codec.Decode(plain)
}

func (c *compressed[V]) checkLength(plain []byte) error {
	if len(plain) > c.maxBytes {
		return fmt.Errorf("%d bytes are more than the limit of %d", len(plain), c.maxBytes)
	}
	return nil
}

// decompress refuses data that zstd decompresses to nothing although Encode does not
// write it: no frame, and a frame that decoders skip.
func (c *compressed[V]) decompress(data []byte) ([]byte, error) {
	var header zstd.Header
	if err := header.Decode(data); err != nil {
		return nil, err
	}
	if header.Skippable {
		return nil, errors.New("not a frame of data")
	}
	plain, err := c.reader.DecodeAll(data, nil)
	if err == nil {
		err = c.checkLength(plain)
	}
	return plain, err
}
