package rediscache

import "encoding/json"

// Codec turns values into what is stored, and back. It is safe for concurrent
// use. The bytes that Decode is given are its own: it may keep them and change
// them, and is given them once. It must refuse what is no encoding. Encode leaves
// its result to the caller, who only reads it.
type Codec[V any] interface {
	Encode(value V) ([]byte, error)
	Decode(data []byte) (V, error)
}

// JSON is a [Codec] that stores JSON, as encoding/json makes and reads it.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(value V) ([]byte, error) { return json.Marshal(value) }

func (jsonCodec[V]) Decode(data []byte) (value V, err error) {
	err = json.Unmarshal(data, &value)
	return value, err
}

// Bytes is a [Codec] that stores bytes as they are. It does not go with
// [Policy.Negative].
func Bytes() Codec[[]byte] { return bytesCodec{} }

type bytesCodec struct{}

func (bytesCodec) Encode(value []byte) ([]byte, error) { return value, nil }
func (bytesCodec) Decode(data []byte) ([]byte, error)  { return data, nil }

// String is a [Codec] that stores strings as they are. It does not go with
// [Policy.Negative].
func String() Codec[string] { return stringCodec{} }

type stringCodec struct{}

func (stringCodec) Encode(value string) ([]byte, error) { return []byte(value), nil }
func (stringCodec) Decode(data []byte) (string, error)  { return string(data), nil }

// emptiesZero says whether a codec encodes the zero value to nothing, as those
// do that can encode anything to nothing. One that panics at it or refuses it
// does not.
func emptiesZero[V any](codec Codec[V]) (empties bool) {
	defer func() {
		if recover() != nil {
			empties = false
		}
	}()
	var zero V
	data, err := codec.Encode(zero)
	return err == nil && len(data) == 0
}
