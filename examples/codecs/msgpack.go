package codecs

import (
	"bytes"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/rediscache/rediscache"
)

// MsgPack returns a codec that stores MessagePack. It refuses an encoding longer than
// maxBytes, in Encode and in Decode: the decoder needs stack in proportion to the depth
// of the data, and a Go program whose stack overflows dies. MsgPack panics if maxBytes
// is not positive.
//
// Inside a map it is as lenient as [rediscache.JSON] is inside an object: it drops
// unknown fields, and a missing field keeps its zero value.
func MsgPack[V any](maxBytes int) rediscache.Codec[V] {
	if maxBytes <= 0 {
		panic(fmt.Sprintf("codecs: MsgPack: maxBytes %d is not positive", maxBytes))
	}
	return msgPack[V]{maxBytes}
}

type msgPack[V any] struct{ maxBytes int }

func (c msgPack[V]) Encode(value V) ([]byte, error) {
	data, err := msgpack.Marshal(value)
	if err != nil {
		return nil, err
	}
	return data, c.checkLength(data)
}

func (c msgPack[V]) Decode(data []byte) (value V, err error) {
	if err := c.checkLength(data); err != nil {
		return value, err
	}
	if err := complete(data); err != nil {
		return value, err
	}
	if err := msgpack.Unmarshal(data, &value); err != nil {
		return value, err
	}
	if data[0] != nilCode {
		return value, nil
	}
	// Unmarshal makes a zero value of nil, which only some types are encoded to.
	again, err := msgpack.Marshal(value)
	if err == nil && !bytes.Equal(again, data) {
		err = fmt.Errorf("codecs: MessagePack's nil is not a %T", value)
	}
	return value, err
}

const nilCode = 0xc0

func (c msgPack[V]) checkLength(data []byte) error {
	if len(data) > c.maxBytes {
		return fmt.Errorf("codecs: %d bytes of MessagePack are more than the limit of %d", len(data), c.maxBytes)
	}
	return nil
}

// complete returns an error if data is not one whole value. Unmarshal allocates a slice
// as long as its header says, before it reads the elements, so five bytes could take all
// memory; and it ignores bytes after the value.
func complete(data []byte) error {
	r := bytes.NewReader(data)
	if err := msgpack.NewDecoder(r).Skip(); err != nil {
		return err
	}
	if r.Len() > 0 {
		return fmt.Errorf("codecs: %d bytes after the MessagePack value", r.Len())
	}
	return nil
}
