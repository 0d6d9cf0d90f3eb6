package rediscache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
)

// Codec turns values into what is stored, and back. It is safe for concurrent
// use. The bytes that Decode is given are its own: it may keep them and change
// them, and is given them once. It must return an error for bytes that Encode
// cannot have written, such as another program's: to a [View] they are a miss,
// and a codec that makes a zero value of them serves that value until it expires.
// Encode leaves its result to the caller, who only reads it.
type Codec[V any] interface {
	Encode(value V) ([]byte, error)
	Decode(data []byte) (V, error)
}

// JSON is a [Codec] that stores JSON, as encoding/json writes and reads it. It
// refuses two things that encoding/json accepts although it never writes them:
//
//   - null for a type that has no null. For an int or a struct null is an error.
//     For a pointer, a map, a slice, an interface, or a type whose MarshalJSON
//     writes null, it is the value that was encoded to it.
//   - an array of another length than that of a Go array.
//
// Inside an object it is as lenient as encoding/json: unknown fields are
// dropped, and a field that is missing or null keeps its zero value. Two
// versions of a program share their keys while one replaces the other, and if
// each refused what the other had stored, neither would have a hit. Whoever
// changes the meaning of a type should change the prefix too.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(value V) ([]byte, error) { return json.Marshal(value) }

func (jsonCodec[V]) Decode(data []byte) (value V, err error) {
	if err = json.Unmarshal(data, &value); err != nil {
		return value, err
	}
	t := reflect.TypeFor[V]()
	if !isNull(data) && t.Kind() != reflect.Array {
		return value, nil
	}
	// Marshal alone knows what it writes for V, which may have a MarshalJSON.
	again, err := json.Marshal(value)
	if err == nil && (isNull(again) != isNull(data) || elements(again) != elements(data)) {
		err = fmt.Errorf("encoding/json does not write this JSON for a %v", t)
	}
	return value, err
}

// isNull reports whether valid JSON is null.
func isNull(data []byte) bool { return bytes.TrimSpace(data)[0] == 'n' }

// elements returns the length of a JSON array, and zero for all other JSON.
func elements(data []byte) int {
	var array []json.RawMessage
	_ = json.Unmarshal(data, &array) // which leaves nil where it fails
	return len(array)
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
