package rediscache_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestTheProgramOfTheReadmeRunsWithAndWithoutRedis(t *testing.T) {
	_, program, found := strings.Cut(readFile(t, "README.md"), "```go\n")
	require.True(t, found)
	program, _, _ = strings.Cut(program, "```")
	const url = "redis://localhost:6379"
	require.Contains(t, program, url)
	for _, server := range []string{redistest.StartMini(t).URL(), "redis://" + redistest.Nobody(t)} {
		file := filepath.Join(t.TempDir(), "main.go")
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(program, url, server)), 0o600))
		out, err := exec.Command("go", "run", file).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, "Ann <nil>\n", string(out))
	}
}

func TestTheProgramsOfTheManualAreInExamples(t *testing.T) {
	examples := dedent(readFile(t, "example_test.go"))
	programs := regexp.MustCompile(`(?m)(^//\t.*\n(//\n(//\t))?)+`).FindAllString(readFile(t, "doc.go"), -1)
	require.Len(t, programs, 3)
	for _, program := range programs {
		require.Contains(t, examples, "\n"+regexp.MustCompile(`(?m)^//\t?`).ReplaceAllString(program, ""))
	}
}

func TestTheReadmeIsShortAndItsLinksLeadSomewhere(t *testing.T) {
	readme := readFile(t, "README.md")
	require.LessOrEqual(t, strings.Count(readme, "\n"), 200)
	for _, command := range []string{"go run ./examples/server", "go test ./..."} {
		require.Contains(t, readme, "\n    "+command+"\n")
	}
	for _, link := range regexp.MustCompile(`\]\(([^):]+)\)`).FindAllStringSubmatch(readme, -1) {
		_, err := os.Stat(filepath.FromSlash(link[1]))
		require.NoError(t, err)
	}
}

func TestEveryPromiseNamesATestThatExists(t *testing.T) {
	link := regexp.MustCompile(`\[((?:Test|Fuzz)\w+)\]\(([\w/]+_test\.go)\)`)
	for _, table := range []struct{ file, begins, ends string }{
		{"README.md", "\n| promise | test that holds it to that |\n|---|---|\n", "\n\n"},
		{"RELIABILITY.md", "\n| fault | promise | measured | test |\n|---|---|---|---|\n", "\n\n"},
	} {
		text := readFile(t, table.file)
		for _, test := range link.FindAllStringSubmatch(text, -1) {
			require.True(t, strings.Contains(readFile(t, test[2]), "\nfunc "+test[1]+"("), test[1])
		}
		_, rows, found := strings.Cut(text, table.begins)
		require.True(t, found, table.file)
		rows, _, _ = strings.Cut(rows, table.ends)
		for row := range strings.Lines(rows) {
			require.Regexp(t, link.String()+`|the same \|`, row)
		}
	}
}

func TestTheReadmesCurlLinesAnswerWhatItSays(t *testing.T) {
	s := redistest.StartMini(t)
	h := rediscache.NewHandler(newCache(t, newPool(t, s.URL())))
	session := regexp.MustCompile(`(?m)^\$ curl (.*)\n(.*)\n`).FindAllStringSubmatch(readFile(t, "README.md"), -1)
	require.GreaterOrEqual(t, len(session), 3)
	for _, line := range session {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, curl(t, line[1]))
		require.Equal(t, line[2], w.Body.String(), line[1])
	}
}

// curl makes the request that curl makes of args, as far as the README uses it.
func curl(t *testing.T, args string) *http.Request {
	t.Helper()
	method, target, body, header := "", "", "", http.Header{}
	words := regexp.MustCompile(`'[^']*'|\S+`).FindAllString(args, -1)
	for i := 0; i < len(words); i++ {
		next := func() string {
			i++
			return strings.Trim(words[i], "'")
		}
		switch word := strings.Trim(words[i], "'"); word {
		case "-X":
			method = next()
		case "-H":
			name, value, _ := strings.Cut(next(), ": ")
			header.Set(name, value)
		case "-d":
			body = next()
		default:
			require.Regexp(t, `^http://127\.0\.0\.1:8080/`, word)
			target = word
		}
	}
	switch {
	case method == "" && body != "":
		method = http.MethodPost
	case method == "":
		method = http.MethodGet
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	r.Header = header
	return r
}

// dedent takes one tab off every line that has one.
func dedent(s string) string { return regexp.MustCompile(`(?m)^\t`).ReplaceAllString(s, "") }

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(name))
	require.NoError(t, err)
	return string(b)
}
