const fs = require('fs'), http = require('http');
process.on('SIGTERM', () => process.exit(0));
http.createServer((request, response) => response.end(fs.readFileSync('/app/page'))).listen(process.argv[2], '127.0.0.1');
