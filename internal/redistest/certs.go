package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certs is a certificate authority of one test and what it has issued.
type Certs struct {
	Pool       *x509.CertPool // holds the authority
	CAFile     string
	Server     Cert // for 127.0.0.1 and localhost
	Expired    Cert // as Server, but its time was over an hour ago
	NotYet     Cert // as Server, but its time begins in an hour
	WrongName  Cert // as Server, but for elsewhere.invalid
	SelfSigned Cert // as Server, but of no authority
	Client     Cert
}

// Cert is a certificate with its key, in memory and as PEM files.
type Cert struct {
	Pair              tls.Certificate
	CertFile, KeyFile string
}

// NewCerts makes a new authority and its certificates (ECDSA P-256); the files go with the test.
func NewCerts(tb testing.TB) *Certs {
	tb.Helper()
	now := time.Now()
	a := authority{t: tb, dir: tb.TempDir()}
	root := a.issue("ca", &x509.Certificate{
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	nobody := a
	a.root = &root
	leaf := func(by *authority, name string, begins, ends time.Duration, host string, ips ...net.IP) Cert {
		return by.issue(name, &x509.Certificate{
			NotBefore: now.Add(begins), NotAfter: now.Add(ends),
			DNSNames: []string{host}, IPAddresses: ips, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		})
	}
	const past, future = -2 * time.Hour, 12 * time.Hour
	loopback := net.IPv4(127, 0, 0, 1)
	c := &Certs{
		Pool:       x509.NewCertPool(),
		CAFile:     root.CertFile,
		Server:     leaf(&a, "server", past, future, "localhost", loopback),
		Expired:    leaf(&a, "expired", past, -time.Hour, "localhost", loopback),
		NotYet:     leaf(&a, "not-yet", time.Hour, future, "localhost", loopback),
		WrongName:  leaf(&a, "wrong-name", past, future, "elsewhere.invalid"),
		SelfSigned: leaf(&nobody, "self-signed", past, future, "localhost", loopback),
		Client:     leaf(&a, "client", past, future, "client.invalid"),
	}
	c.Pool.AddCert(root.Pair.Leaf)
	return c
}

// ClientConfig returns a new configuration that trusts the authority and shows Client.
func (c *Certs) ClientConfig() *tls.Config {
	return &tls.Config{RootCAs: c.Pool, Certificates: []tls.Certificate{c.Client.Pair}, MinVersion: tls.VersionTLS12}
}

// ServerConfig returns a new configuration that shows Server.
func (c *Certs) ServerConfig() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.Server.Pair}}
}

type authority struct {
	t    testing.TB
	dir  string
	root *Cert // nil until it has issued itself
	last int64 // serial number
}

// issue completes template, signs it and writes both files.
func (a *authority) issue(name string, template *x509.Certificate) Cert {
	a.t.Helper()
	a.last++
	template.SerialNumber = big.NewInt(a.last)
	template.Subject = pkix.Name{CommonName: name}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	parent, signer := template, any(key)
	if a.root != nil {
		parent, signer = a.root.Pair.Leaf, a.root.Pair.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	a.check(err)
	leaf, err := x509.ParseCertificate(der)
	a.check(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	a.check(err)
	return Cert{
		Pair:     tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		CertFile: a.write(name+".crt", "CERTIFICATE", der),
		KeyFile:  a.write(name+".key", "PRIVATE KEY", pkcs8),
	}
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	a.check(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

func (a *authority) check(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatalf("certificates: %v", err)
	}
}
