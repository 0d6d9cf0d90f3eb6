// Package cert makes the certificates of the TLS section.
package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Host is the address that the server's certificate is valid for.
const Host = "127.0.0.1"

// Pair is a certificate of [Host] that an authority of its own has signed.
type Pair struct {
	CA, Cert, Key string // PEM files for the server
	authority     *x509.CertPool
}

// Config returns a client's configuration that verifies the server.
func (p *Pair) Config() *tls.Config {
	return &tls.Config{RootCAs: p.authority, ServerName: Host, MinVersion: tls.VersionTLS12}
}

// Make writes the files of a new pair, which is valid for a day, into dir.
func Make(dir string) (*Pair, error) {
	p, err := makePair(dir)
	if err != nil {
		return nil, fmt.Errorf("bench: make a certificate: %w", err)
	}
	return p, nil
}

func makePair(dir string) (*Pair, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := template(1, "bench authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := template(2, Host)
	leaf.IPAddresses = []net.IP{net.ParseIP(Host)}
	leaf.KeyUsage, leaf.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	p := &Pair{
		CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"),
		authority: x509.NewCertPool(),
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{p.CA, "CERTIFICATE", caDER}, {p.Cert, "CERTIFICATE", leafDER}, {p.Key, "PRIVATE KEY", keyDER}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(f.name, text, 0o600); err != nil {
			return nil, err
		}
		if f.name == p.CA {
			p.authority.AppendCertsFromPEM(text)
		}
	}
	return p, nil
}

func template(serial int64, name string) *x509.Certificate {
	const day = 24 * time.Hour
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-day), NotAfter: time.Now().Add(day),
	}
}
