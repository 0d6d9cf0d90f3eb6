package rediscache_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// shownIn names the example that shows a name which has none of its own.
var shownIn = map[string]string{
	"Event": "WithObserver", "Outcome": "WithObserver", "Stats": "Cache_Stats",
	"NearStats": "WithNearCache", "NearState": "WithNearCache",
	"Group": "Cache_Group", "Group_Invalidate": "Cache_Group",
	"Group_Get": "Cache_Group", "Group_Set": "Cache_Group", "Group_Delete": "Cache_Group",
	"GroupView": "OfGroup", "GroupView_View": "OfGroup",
	"PoolEvent": "WithPoolObserver", "PoolEventKind": "WithPoolObserver",
	"PoolStats": "WarmPool_Stats", "PoolClosed": "WarmPool_Stats",
	"Option": "New", "PoolOption": "WithMaxActive", "HandlerOption": "WithBasePath",
}

// Each exported function, type and method has an Example of at most 40 lines, except the
// methods that only package errors calls.
func TestEveryExportedNameHasAnExample(t *testing.T) {
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	var files []*ast.File
	fset := token.NewFileSet()
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".go") &&
			(!strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "example_")) {
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	pkg, err := doc.NewFromFiles(fset, files, "github.com/rediscache/rediscache")
	require.NoError(t, err)
	has := map[string]bool{}
	check := func(name string, examples []*doc.Example) {
		for _, e := range examples {
			require.NotEmpty(t, e.Output, "Example%s", e.Name)
			lines := fset.Position(e.Code.End()).Line - fset.Position(e.Code.Pos()).Line + 1 // with the braces
			require.LessOrEqual(t, lines, 42, "Example%s", e.Name)
		}
		if other, ok := shownIn[name]; ok {
			name = other
		} else if len(examples) > 0 {
			has[name] = true
		}
		if name != "" && !has[name] {
			has[name] = false // unless it comes later
		}
	}
	check("", pkg.Examples)
	for _, f := range pkg.Funcs {
		check(f.Name, f.Examples)
	}
	for _, typ := range pkg.Types {
		check(typ.Name, typ.Examples)
		for _, f := range typ.Funcs {
			check(f.Name, f.Examples)
		}
		for _, m := range typ.Methods {
			if m.Name != "Error" && m.Name != "Unwrap" && m.Name != "Is" {
				check(typ.Name+"_"+m.Name, m.Examples)
			}
		}
	}
	require.Greater(t, len(has), 60)
	for name, ok := range has {
		require.True(t, ok, "there is no Example%s", name)
	}
}
