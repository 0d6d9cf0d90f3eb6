// Package browsertest tests the pages and the document of apidocs with a browser and with
// an OpenAPI library. It is a module of its own because of what these need.
package browsertest
