// Package codecs has codecs for a View of rediscache, to use or to copy: zstd around
// another codec, MessagePack, and protobuf.
//
//	cd examples/codecs && go test .
//
// Look at the Examples. Whoever can write to Redis chooses the bytes that a codec
// decodes, so each codec bounds the memory that a small value can take, and returns an
// error for bytes that it cannot have written. A View treats that error as a miss.
package codecs
